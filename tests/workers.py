"""Worker processes for tests: real ones, and gone when their block is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from promptmill import watchdog

#: The command line of a worker with the echo engine.
WORKER = [sys.executable, "-m", "promptmill.cli", "worker", "--engine", "echo", "--model", "echo"]

#: How long a worker may take to start, in seconds.
START_TIMEOUT_S = 60.0
#: How long it may take to stop when its test is over, in seconds; then it is killed.
STOP_TIMEOUT_S = 2.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> float:
    """Waits until ``condition`` holds; returns how long that took, in seconds."""
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() < started_at + timeout_s, f"still not so after {timeout_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started_at


class WorkerProcess:
    """One command, a worker or its launcher, under a watchdog, which ends it even if the tests are killed."""

    def __init__(self, watched: subprocess.Popen[bytes], log: Path) -> None:
        self._watched = watched
        self._log = log

    @property
    def log(self) -> str:
        """What it has written, standard output and error."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Process id of the command itself."""
        listed = subprocess.run(["pgrep", "-P", str(self._watched.pid)], capture_output=True, text=True)
        return int(listed.stdout)

    @property
    def celery_name(self) -> str:
        """What Celery calls the worker that was ready first."""
        [name] = re.findall(r"(\S+@\S+) ready\.", self.log)[:1]
        return name

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._watched.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Waits for its end; returns its exit code."""
        return self._watched.wait(timeout_s)

    def wait_until_ready(self) -> None:
        """Waits until it takes tasks."""
        wait_until(lambda: " ready." in self.log or self._watched.poll() is not None, "ready", START_TIMEOUT_S)
        assert self._watched.poll() is None, self.log


@contextmanager
def a_process(command: list[str], log: Path, **environment: str) -> Iterator[WorkerProcess]:
    """Runs a command that must not outlive the block."""
    with log.open("ab") as output:
        watched = watchdog.start_watched(
            command, STOP_TIMEOUT_S, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield WorkerProcess(watched, log)
    finally:
        watchdog.ask_to_stop(watched)


@contextmanager
def a_worker(
    broker_url: str, log: Path, *options: str, ready: bool = True, restart: bool = False
) -> Iterator[WorkerProcess]:
    """A ``promptmill worker`` with the echo engine, which takes tasks unless it shall not be waited for.

    With ``restart`` the process is the worker's launcher.
    """
    command = [*WORKER, "--restart" if restart else "--no-restart", *options]
    with a_process(command, log, PROMPTMILL_BROKER_URL=broker_url) as worker:
        if ready:
            worker.wait_until_ready()
        yield worker
