"""A thread that does one thing again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

__all__ = ["Periodic"]

log = logging.getLogger(__name__)


class Periodic:
    """Calls ``action`` every ``interval_s`` seconds on a thread of its own, until it is stopped.

    An action that raises is called again soon: the broker may have dropped one connection, or be away for a while.
    """

    def __init__(self, name: str, interval_s: float, action: Callable[[], None]) -> None:
        self.name = name
        self.interval_s = interval_s
        self._action = action
        self._stopped = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins with a first call at once."""
        self._thread.start()

    def stop(self) -> None:
        """Waits for a call that is under way, and makes no other."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._action()
                self._failed = False
            except Exception as error:
                # The type alone: a driver's message may quote what it was sent.
                if not self._failed:
                    log.warning("%s failed (%s); it is tried again", self.name, type(error).__name__)
                self._failed = True
            if self._stopped.wait(self.interval_s / 4 if self._failed else self.interval_s):
                return
