"""Processes that are started again whenever they end, as a supervisor does it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from proxy import Proxy
from workers import WorkerProcess, a_worker

__all__ = ["Kept", "KeptWorker"]

#: What a watchdog returns of a child that was killed.
KILLED = 128 + signal.SIGKILL


class Kept:
    """Keeps one process going, on a thread of its own.

    Args:
        start: Starts it; is told how often it was started before.
        chance: Draws the pauses before it is started again.
        until_done: Whether an exit code of 0 is the end of it.
    """

    def __init__(
        self,
        start: Callable[[int], AbstractContextManager[WorkerProcess]],
        chance: random.Random,
        *,
        until_done: bool,
    ) -> None:
        self._start = start
        self._chance = chance
        self._until_done = until_done
        self._closing = threading.Event()
        #: The process that runs now.
        self.process: WorkerProcess | None = None
        self.starts = 0
        self.ends = 0
        #: Exit codes of those that nobody killed and that were not done.
        self.failures: list[int] = []
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it has ended for good."""
        return not self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id of what runs now; None if nothing does."""
        process = self.process
        try:
            return None if process is None else process.pid
        except ValueError:  # it has just ended
            return None

    def send(self, number: signal.Signals) -> bool:
        """Sends the process a signal; returns whether there is one."""
        return send(self.pid, number)

    def close(self) -> None:
        """Ends it for good."""
        self._closing.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closing.is_set():
            with self._start(self.starts) as self.process:
                self.starts += 1
                code = self._wait(self.process)
            self.process = None
            self.ends += 1
            if code == 0 and self._until_done:
                return
            if code not in (0, None, KILLED):
                self.failures.append(code)
            self._closing.wait(self._chance.uniform(0.1, 2.0))

    def _wait(self, process: WorkerProcess) -> int | None:
        """Its exit code; None if it is to be ended."""
        while not self._closing.is_set():
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        return None


class KeptWorker(Kept):
    """A worker behind a network of its own.

    Args:
        broker_url: The broker past that network.
        folder: For the logs.
        name: Of this place, not of the worker: that one is called after its host and process.
        options: Of the worker.
        launched: Whether the process is the worker's launcher, and the worker below it.
        chance: Draws the pauses before restarts.
    """

    def __init__(
        self, broker_url: str, folder: Path, name: str, options: tuple[str, ...], launched: bool, chance: random.Random
    ) -> None:
        self.name = name
        self.launched = launched
        self.proxy = Proxy(broker_url)
        #: Whether it is cut off, or stopped, just now.
        self.impaired = False
        super().__init__(
            lambda run: a_worker(self.proxy.url, folder / f"{name}.{run}.log", *options, ready=False, restart=launched),
            chance,
            until_done=False,
        )

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker itself."""
        pid = self.pid
        if pid is None or not self.launched:
            return pid
        listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
        return int(listed[0]) if listed else None

    def close(self) -> None:
        """Ends it for good, and its network."""
        super().close()
        self.proxy.__exit__(None, None, None)


def worker_name(pid: int) -> str:
    """What a worker calls itself that was given no name."""
    return f"{socket.gethostname()}-{pid}"


def send(pid: int | None, number: signal.Signals) -> bool:
    """Sends a signal to a process that may have ended; returns whether it was there."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
