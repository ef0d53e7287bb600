"""A monitor on this machine that belongs to this process and ends with it: for ``promptmill up``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from promptmill import watchdog
from promptmill.settings import environment_name

__all__ = ["LocalMonitor"]

#: How long it may take to save what it has seen, in seconds.
STOP_TIMEOUT_S = 10.0


class LocalMonitor:
    """A ``promptmill monitor``, as a context manager. One that can't start says why, and nothing else happens.

    Args:
        broker_url: Handed over in the environment, since a command line is everybody's to read.
        state_dir: Where it keeps what it has seen; with None that goes at the end.
    """

    def __init__(self, broker_url: str, state_dir: Path | None) -> None:
        self._environment = {**os.environ, environment_name("broker_url"): broker_url}
        self._environment.pop(environment_name("metrics_port"), None)  # the worker's
        self._state_dir = state_dir
        self._watchdog: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        """Whether the packages of ``promptmill[monitor]`` are there."""
        return find_spec("flower") is not None

    def __enter__(self) -> Self:
        state_dir = self._state_dir or Path(tempfile.mkdtemp(prefix="promptmill-monitor-"))
        self._watchdog = watchdog.start_watched(
            [sys.executable, "-m", "promptmill.cli", "monitor", "--state-dir", str(state_dir)],
            STOP_TIMEOUT_S,
            folder=None if self._state_dir else state_dir,
            env=self._environment,
        )
        return self

    def has_ended(self) -> bool:
        """Whether it runs no more, or could not even start."""
        return self._watchdog is not None and self._watchdog.poll() is not None

    def __exit__(self, *exception: object) -> None:
        if self._watchdog is not None:
            watchdog.ask_to_stop(self._watchdog)
