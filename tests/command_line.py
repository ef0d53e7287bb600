"""The ``promptmill`` command for tests: as a process of its own, with nothing of our environment but what is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect

__all__ = ["assert_one_sentence", "interrupted", "on_a_terminal", "promptmill", "started"]

COMMAND = [sys.executable, "-m", "promptmill.cli"]


def environment_of(broker: str, given: dict[str, str]) -> dict[str, str]:
    """Ours without promptmill's variables, and with those that are given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    return {**inherited, **({"PROMPTMILL_BROKER_URL": broker} if broker else {}), **given}


def promptmill(
    *arguments: str | Path, broker: str = "", text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with ``text`` as its standard input."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        input=text,
        timeout=60,
        env=environment_of(broker, environment),
    )


@contextmanager
def started(*arguments: str | Path, broker: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a command while the block runs, its standard output and error as pipes; what is left of it is killed."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of(broker, environment),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Sends SIGINT; returns exit code, standard output and standard error."""
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    return process.returncode, stdout, stderr


@contextmanager
def on_a_terminal(*arguments: str | Path, broker: str, **environment: str) -> Iterator[pexpect.spawn[str]]:
    """Runs a command on a terminal of 120 columns while the block runs."""
    given = {"TERM": "xterm-256color", **environment}
    child = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *map(str, arguments)],
        env=environment_of(broker, given),
        dimensions=(50, 120),
        encoding="utf-8",
        timeout=30,
    )
    try:
        yield child
    finally:
        child.close(force=True)


def assert_one_sentence(process: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Asserts that a command has failed with ``code``, and has said why in one line."""
    assert (process.returncode, process.stdout) == (code, ""), process.stderr
    assert process.stderr.startswith("promptmill: ")
    assert process.stderr.count("\n") == 1
    for part in parts:
        assert part in process.stderr
