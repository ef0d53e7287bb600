"""Whether the model's queue is paused."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["Pause"]

log = logging.getLogger(__name__)


class Pause:
    """What this worker has last heard of its queue: from a claim, or at its beat. Thread-safe."""

    def __init__(self) -> None:
        self._lasts = False
        #: Called when messages may be taken again; the runtime hangs Celery's wake-up on it.
        self.on_end: Callable[[], None] = lambda: None

    @property
    def lasts(self) -> bool:
        """Whether no message is to be taken."""
        return self._lasts

    def note(self, paused: bool) -> None:
        """Takes in whether the queue is paused."""
        before, self._lasts = self._lasts, paused
        if paused and not before:
            log.info("the queue is paused: what runs goes on, and nothing else is taken")
        elif before and not paused:
            log.info("the queue is resumed")
            self.on_end()
