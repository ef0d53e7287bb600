"""``promptmill batch`` killed, with its workers, and run again; interrupted; through pipes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from batch_files import numbers, prompts, read, read_whole_lines, written
from brokers import client_of
from workers import WorkerProcess, a_worker, wait_until

from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names


@pytest.fixture
def launchers(broker_url: str, tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    """Of two workers, which answer two words in a tenth of a second."""
    options = ("--echo-tokens-per-s", "20", "--max-batch", "16")
    with (
        a_worker(broker_url, tmp_path / "log-1", *options, restart=True) as one,
        a_worker(broker_url, tmp_path / "log-2", *options, restart=True) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def steady(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers two words in a tenth of a second."""
    log = tmp_path_factory.mktemp("steady") / "log"
    with a_worker(embedded_broker.url, log, "--echo-tokens-per-s", "20", "--max-batch", "16") as worker:
        yield worker


@pytest.fixture
def paced(steady: WorkerProcess, broker_url: str) -> str:
    """A broker with a worker that nobody kills."""
    return broker_url


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "promptmill.cli", "batch", *map(str, arguments), "--model", "echo"]


@contextmanager
def started(broker: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PROMPTMILL_BROKER_URL": broker}
    process = subprocess.Popen(
        command(*arguments), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_killed_three_times_with_its_workers_it_answers_each_line_once(
    launchers: list[WorkerProcess], broker_url: str, tmp_path: Path, suffix: str
) -> None:
    draw = random.Random()
    source = written(tmp_path / f"in.jsonl{suffix}", *prompts(1500, max_tokens=9), {"prompt": "promptmill-fault:error"})
    output, errors = tmp_path / f"out.jsonl{suffix}", tmp_path / f"errors.jsonl{suffix}"
    arguments = (source, "--output", output, "--errors", errors, "--simple", "--max-in-flight", "200")
    for _ in range(3):
        with started(broker_url, *arguments) as process:
            before = size(output)
            wait_until(lambda: size(output) > before or process.poll() is not None, "an answer", 60)  # noqa: B023
            time.sleep(draw.random())
            _kill_the_worker_of(draw.choice(launchers))
            time.sleep(draw.random() / 2)
            process.kill()
    with started(broker_url, *arguments, "--json") as process:
        shown, told = process.communicate(timeout=240)
    assert process.returncode == 1, told  # one line fails
    found = read(output)
    assert sorted(line["promptmill"]["line"] for line in found) == list(range(1, 1501))
    assert all(line["text"] == f"line {line['promptmill']['line']}" for line in found)
    assert [line["promptmill"]["line"] for line in read(errors)] == [1501]
    summary = json.loads(shown)
    assert summary["prompts"] == 1501
    assert summary["answered"] + summary["answered_before"] == 1500
    assert summary["failed"] + summary["failed_before"] == 1
    assert summary["answered_before"] > 0


def _kill_the_worker_of(launcher: WorkerProcess) -> None:
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    for child in children:  # none: it is just being started again
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def test_interrupted_it_cancels_what_is_in_flight_and_says_how_to_go_on(paced: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(1000))
    output = tmp_path / "out.jsonl.gz"
    arguments = (source, "--output", output, "--max-in-flight", "400")
    with started(paced, *arguments) as process:
        wait_until(lambda: size(output), "an answer", 60)
        process.send_signal(signal.SIGINT)
        shown, told = process.communicate(timeout=30)
    assert (process.returncode, shown) == (130, "")
    assert "interrupted" in told
    assert "of 1,000 lines are done; the same command goes on with the rest" in told
    assert 0 < len(read(output)) < 1000
    with client_of(paced) as client:  # what is not answered is cancelled and forgotten
        wait_until(lambda: not list(client.scan_iter(Names("promptmill:").record("*"))), "no records", 30)


def test_a_second_interrupt_leaves_at_once(broker_url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"prompt": "word " * 5000, "max_tokens": 5000})
    with started(broker_url, source, "--output", tmp_path / "out.jsonl") as process:
        wait_until(lambda: (tmp_path / "out.jsonl").exists(), "its beginning", 60)
        time.sleep(0.3)
        with client_of(broker_url) as client:
            client.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")  # cancelling takes its time
            process.send_signal(signal.SIGINT)
            try:
                wait_until(lambda: _has_left(process), "it has left", 10)
                assert process.returncode == 130
            finally:
                client.execute_command("CLIENT", "UNPAUSE")


def _has_left(process: subprocess.Popen[str]) -> bool:
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)  # once more: two that it gets at once are one
    return process.poll() is not None


def test_from_a_pipe_into_a_pipe_there_are_answers_and_nothing_else(paced: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    lines = "".join(json.dumps(line) + "\n" for line in prompts(50)) + "wrong\n"
    for _ in range(2):
        done = subprocess.run(
            command("-", "--output", "-", "--simple", "--errors", errors),
            input=lines, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PROMPTMILL_BROKER_URL": paced},
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert sorted(json.loads(line)["promptmill"]["line"] for line in done.stdout.splitlines()) == list(range(1, 51))
        assert [line["promptmill"]["line"] for line in read(errors)] == [51]


def test_what_the_shell_has_closed_is_no_input_and_no_output(paced: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for arguments, closed, told in (
        (f"- --output {output}", "<&-", "standard input is closed"),
        ("/dev/null --output -", ">&-", "standard output is closed"),
    ):
        line = f"{shlex.join([sys.executable, '-m', 'promptmill.cli'])} batch {arguments} --model echo {closed}"
        environment = {**os.environ, "PROMPTMILL_BROKER_URL": paced}
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"promptmill: {told}"), done.stderr


def test_on_a_full_disk_it_keeps_what_was_written_and_says_how_to_go_on(paced: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(60))
    for suffix in ("", ".gz"):
        output = tmp_path / f"out.jsonl{suffix}"
        line = shlex.join(command(source, "--output", output, "--simple"))
        environment = {**os.environ, "PROMPTMILL_BROKER_URL": paced}
        for limit, code in (("ulimit -f 2", 1), ("ulimit -f unlimited", 0)):
            done = subprocess.run(
                ["bash", "-c", f"{limit}; trap '' XFSZ; exec {line}"], capture_output=True, text=True, timeout=60,
                env=environment,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            found = numbers(read_whole_lines(output) if code else read(output))
            assert len(set(found)) == len(found) > 3
            if code:
                assert "out.jsonl" in done.stderr
                assert "the same command goes on with the rest" in done.stderr
        assert len(found) == 60


def test_two_runs_can_not_write_one_file(paced: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(5000))
    arguments = (source, "--output", tmp_path / "out.jsonl")
    with started(paced, *arguments) as first:
        wait_until(lambda: size(tmp_path / "out.jsonl"), "an answer", 60)
        with started(paced, *arguments) as second:
            shown, told = second.communicate(timeout=30)
        assert (second.returncode, shown) == (2, "")
        assert told == (
            "promptmill: another `promptmill batch` is writing out.jsonl: wait for its end, or name another file\n"
        )
        assert first.poll() is None


def test_each_line_of_a_slow_pipe_is_answered_before_the_next_one_comes(paced: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PROMPTMILL_BROKER_URL": paced}
    with subprocess.Popen(
        command("-", "--output", "-", "--simple"), env=environment, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "err").open("w"),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(f'{{"prompt": "line {number}"}}\n\n')
            assert _line_of(process)["text"] == f"line {number}"
        process.stdin.write('{"prompt": "torn')
        process.stdin.flush()
        time.sleep(0.2)
        process.stdin.write('"}')
        process.stdin.close()
        assert _line_of(process)["text"] == "torn"
    assert process.returncode == 0


def _line_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], 60)[0]:
        process.kill()  # or its pipes would never be closed
        pytest.fail("no answer")
    fields: dict[str, Any] = json.loads(process.stdout.readline())
    return fields
