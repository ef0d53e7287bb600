"""Prompts beside each other, or one alone in this worker."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Lets work in beside other work, or alone: then nothing else begins until it has left. Thread-safe.

    A prompt under which workers died runs alone, so that another death would say something.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beside = 0
        #: Who wants to run alone, in their order; the first one does, once nothing else runs.
        self._alone: deque[Callable[[], None]] = deque()
        self._granted = False
        #: Called when work may begin beside other work again; the pool hangs Celery's wake-up on it.
        self.on_open: Callable[[], None] = lambda: None

    @property
    def is_open(self) -> bool:
        """Whether work may begin beside other work."""
        return not self._alone

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Waits until nobody runs alone or wants to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._beside -= 1
            self._grant()

    @contextmanager
    def alone(self, granted: Callable[[], None]) -> Iterator[None]:
        """Has ``granted`` called, from some thread, when nothing else runs; nothing begins until the block is left."""
        with self._changed:
            self._alone.append(granted)
        self._grant()
        try:
            yield
        finally:
            with self._changed:
                if self._alone[0] is granted:
                    self._granted = False
                self._alone.remove(granted)
                self._changed.notify_all()
            self._grant()
            if self.is_open:
                self.on_open()

    def _grant(self) -> None:
        with self._changed:
            if self._beside or self._granted or not self._alone:
                return
            self._granted = True
            granted = self._alone[0]
        granted()
