"""Telling an engine that hangs from one that works."""

from __future__ import annotations

import time
from collections.abc import Callable

from promptmill_worker.engine import Engine

__all__ = ["StallWatch"]


class StallWatch:
    """Looks at an engine, now and then, to see whether it moves. Belongs to one thread.

    Args:
        engine: Stalls when it has prompts and its ``steps`` stand still.
        limit_s: For how long they may, in seconds.
        longest_gap_s: What lies between two looks counts for no more, in seconds: a process that was stopped, or got no
            time on a busy machine, could not have moved.
        clock: Monotonic seconds.
    """

    def __init__(
        self, engine: Engine, limit_s: float, longest_gap_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._limit_s = limit_s
        self._longest_gap_s = longest_gap_s
        self._clock = clock
        self._steps = engine.steps
        self._looked_at = clock()
        #: For how long the engine has had prompts and made no step, in seconds.
        self.still_s = 0.0

    def stalled(self) -> bool:
        """Looks; returns whether the engine has stood still for too long."""
        now, steps = self._clock(), self._engine.steps
        if steps != self._steps or self._engine.running == 0:
            self.still_s = 0.0
        else:
            self.still_s += min(now - self._looked_at, self._longest_gap_s)
        self._steps, self._looked_at = steps, now
        return self.still_s > self._limit_s
