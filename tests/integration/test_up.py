"""``promptmill up``: broker, worker and monitor in one terminal, and all gone at the end, whatever ends it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from brokers import free_port
from workers import wait_until

from promptmill import Client, NoWorkerError
from promptmill.local_worker import LocalWorker


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_everything_that_up_starts_ends_with_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "promptmill.cli", "up", "--engine", "echo", "--model", "echo"]
    log, port = tmp_path / "log", free_port()
    monitor = f"http://127.0.0.1:{port}/fleet"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PROMPTMILL_WORKER_NAME": "mine", "PROMPTMILL_LISTEN_PORT": str(port)},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = next(found[1] for line in process.stdout if (found := re.search("='(.*)'", line)))
            socket = Path(url.split("@")[1].split("?")[0])
            with Client(url) as client:
                assert client.generate("one two three").text == "one two three"
                assert [worker.name for worker in client.fleet().workers] == ["mine"]
            wait_until(lambda: answers(monitor), "the monitor answers", 30)
            worker = int(re.search(r"echo-(\d+)@", log.read_text())[1])
            process.send_signal(number)
            assert process.wait(30) == code
            wait_until(lambda: not socket.exists() and not Path(f"/proc/{worker}").exists(), "all is gone", 30)
            wait_until(lambda: not answers(monitor), "the monitor is gone", 30)
        finally:
            process.kill()


def test_up_says_that_it_goes_on_without_a_monitor_whose_port_is_taken(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "promptmill.cli", "up", "--engine", "echo", "--model", "echo"]
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken, log.open("w") as errors:
        environment = {**os.environ, "PROMPTMILL_LISTEN_PORT": str(taken.getsockname()[1])}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment) as process:
            try:
                wait_until(lambda: "goes on without it" in log.read_text(), "it is said", 30)
                assert "can't listen at 127.0.0.1" in log.read_text()
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(2)
                assert log.read_text().count("goes on without it") == 1
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130
            finally:
                process.kill()


def test_up_says_why_a_worker_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "promptmill.cli", "up", "--no-monitor", "--model", str(tmp_path / "nothing-here")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    *_, reason, last = ended.stderr.splitlines()
    assert "nothing-here" in reason
    assert last == "promptmill: the worker did not start"
    assert "Traceback" not in ended.stderr


def test_a_worker_that_writes_to_a_log_is_quoted(broker_url: str, tmp_path: Path) -> None:
    options = ["--model", str(tmp_path / "nothing-here")]
    with (
        LocalWorker(broker_url, options, tmp_path / "log") as worker,
        Client(broker_url) as client,
        pytest.raises(NoWorkerError, match=r"^the worker did not start: model '.*nothing-here' can't be loaded"),
    ):
        worker.wait_until_ready(client)
