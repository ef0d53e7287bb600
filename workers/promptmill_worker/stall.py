"""Telling an engine that hangs from one that works."""

from __future__ import annotations

import time
from collections.abc import Callable

from promptmill_worker.engine import Engine

__all__ = ["StallWatch"]


class StallWatch:
    """Asks an engine, now and then, whether it moves. Belongs to one thread.

    Args:
        engine: Stalls when it has prompts and its ``steps`` stand still.
        limit_s: For how long they may, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(self, engine: Engine, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._limit_s = limit_s
        self._clock = clock
        self._steps = engine.steps
        self._moved_at = clock()

    @property
    def still_s(self) -> float:
        """For how long the engine has had prompts and made no step, in seconds."""
        steps = self._engine.steps
        if steps != self._steps or self._engine.running == 0:
            self._steps = steps
            self._moved_at = self._clock()
        return self._clock() - self._moved_at

    @property
    def stalled(self) -> bool:
        """Whether that is longer than it may be."""
        return self.still_s > self._limit_s
