"""The command line under Ctrl-C and while the broker is away; and on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import interrupted, on_a_terminal, promptmill, started
from proxy import Proxy
from redis import Redis
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client
from promptmill.names import Names

#: Ten minutes, at 10 words a second.
LONG = "word " * 6000

RED = "\x1b[31m"


@pytest.fixture
def worker(tcp_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    with a_worker(tcp_url, tmp_path / "log", "--echo-tokens-per-s", "10") as process:
        yield process


@pytest.fixture
def client(tcp_url: str) -> Iterator[Client]:
    with Client(tcp_url, model="echo") as client:
        yield client


def runs(client: Client) -> bool:
    return any(worker.running for worker in client.fleet().workers)


def interrupted_again(process: subprocess.Popen[str]) -> bool:
    """Sends SIGINT, of which one that comes while another is pending is lost; returns whether the process has ended."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    return process.returncode is not None


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("option", ["--stream", "--no-stream", "--json"])
def test_ctrl_c_cancels_a_generate_on_the_broker(tcp_url: str, client: Client, broker: Redis, option: str) -> None:
    with started("generate", LONG, "--max-tokens", "6000", option, broker=tcp_url) as process:
        wait_until(lambda: runs(client), "it runs")
        code, _, told = interrupted(process)
    assert (code, told.strip()) == (130, "promptmill: interrupted")
    wait_until(lambda: not runs(client), "the engine is empty")
    assert not list(broker.scan_iter(Names("promptmill:").record("*")))


def test_ctrl_c_while_the_command_imports_its_modules_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["promptmill"].partition(":")
    with subprocess.Popen(
        [sys.executable, "-c", f"from {module} import {function}; {function}()", "status"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        assert interrupted(process) == (130, "", "")


@pytest.mark.usefixtures("worker")
def test_a_second_ctrl_c_leaves_at_once(client: Client, proxy: Proxy) -> None:
    endless = {"PROMPTMILL_BROKER_TIMEOUT_S": "600"}
    with started("generate", LONG, "--max-tokens", "6000", broker=proxy.url, **endless) as process:
        wait_until(lambda: runs(client), "it runs")
        proxy.hold()  # so that nothing can be cancelled
        process.send_signal(signal.SIGINT)
        with pytest.raises(Exception, match="timed out"):
            process.wait(1)
        wait_until(lambda: interrupted_again(process), "a second ends it", 20)
        assert process.returncode == 130


def test_watching_goes_on_while_the_broker_is_away(worker: WorkerProcess, client: Client, proxy: Proxy) -> None:
    wait_until(lambda: client.fleet().workers, "it serves")
    with started("status", "--watch", "--json", broker=proxy.url, PROMPTMILL_BROKER_TIMEOUT_S="3") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = json.loads(process.stdout.readline())
        assert seen["workers"][0]["served_name"] == "echo"
        proxy.reset(refuse=True)
        assert "does not answer" in process.stderr.readline()
        proxy.heal()
        assert json.loads(process.stdout.readline())["models"][0]["name"] == "echo"
        code, _, told = interrupted(process)
    assert code == 0
    assert "interrupted" not in told


def test_watching_a_broker_that_was_never_there_ends_in_a_sentence(proxy: Proxy) -> None:
    proxy.reset(refuse=True)
    refused = promptmill("status", "--watch", broker=proxy.url, PROMPTMILL_BROKER_TIMEOUT_S="0.2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1


def test_on_a_terminal_the_fleet_is_shown_live_and_an_outage_in_red(
    worker: WorkerProcess, client: Client, proxy: Proxy
) -> None:
    wait_until(lambda: client.fleet().workers, "it serves")
    with on_a_terminal("status", "--watch", broker=proxy.url, PROMPTMILL_BROKER_TIMEOUT_S="3") as terminal:
        terminal.expect("Workers")
        proxy.reset(refuse=True)
        terminal.expect_exact(RED)
        terminal.expect("does not answer")
        proxy.heal()
        terminal.expect("Workers")
        terminal.sendintr()
        terminal.expect_exact("\x1b[?25h")  # the cursor is back
        terminal.wait()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize(("environment", "is_red"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_errors_are_red_on_a_terminal_unless_colours_are_not_wanted(
    proxy: Proxy, environment: dict[str, str], is_red: bool
) -> None:
    proxy.reset(refuse=True)
    with on_a_terminal("status", broker=proxy.url, PROMPTMILL_BROKER_TIMEOUT_S="0.2", **environment) as terminal:
        shown = terminal.read()
        terminal.wait()
    assert terminal.exitstatus == 1
    assert "promptmill: the broker" in shown
    assert (RED in shown) is is_red
    assert ("\x1b" in shown) is is_red
