"""A worker on this machine that belongs to this process and ends with it: for ``promptmill up`` and ``demo``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from promptmill import watchdog
from promptmill.client import Client
from promptmill.errors import NoWorkerError
from promptmill.fleet import WorkerRecord
from promptmill.settings import environment_name

__all__ = ["LocalWorker"]

#: How long a worker may take to end after SIGTERM, in seconds: its own grace, and a little.
STOP_TIMEOUT_S = 40.0


class LocalWorker:
    """A ``promptmill worker``, started again when it dies, as a context manager.

    Args:
        broker_url: Handed over in the environment, since a command line is everybody's to read.
        options: Its command line, without the command.
        log: File for what it writes; None lets it write where we do.
    """

    def __init__(self, broker_url: str, options: Sequence[str], log: Path | None = None) -> None:
        self._command = [sys.executable, "-m", "promptmill.cli", "worker", *options]
        self._environment = {**os.environ, environment_name("broker_url"): broker_url}
        self._log = log
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._log or Path(os.devnull)).open("ab") as log:
            output = None if self._log is None else log
            self._watchdog = watchdog.start_watched(
                self._command, STOP_TIMEOUT_S, env=self._environment, stdout=output, stderr=output
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watchdog is not None:
            watchdog.ask_to_stop(self._watchdog)

    def wait_until_ready(self, client: Client) -> WorkerRecord:
        """Waits until a worker is in the fleet, its model loaded.

        Raises:
            NoWorkerError: the process ended before that; its last line is in the message if it wrote to ``log``.
        """
        while True:
            workers = client.fleet().workers
            if workers:
                return workers[0]
            if self.wait(0.2) is not None:
                raise NoWorkerError(": ".join(["the worker did not start", *self._last_words()]))

    def _last_words(self) -> list[str]:
        """The last line of the log; none where it is not ours to read, or empty."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log else []
        return [line.removeprefix("promptmill: ") for line in lines[-1:]]

    def wait(self, timeout_s: float) -> int | None:
        """The worker's exit code, or None if it still runs after ``timeout_s`` seconds."""
        assert self._watchdog is not None
        try:
            return self._watchdog.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
