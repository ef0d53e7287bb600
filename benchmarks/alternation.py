"""Two ways of computing a step, by turns within one running batch, so that a noisy machine is noisy for both."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from promptmill.protocol import GenerationResult

__all__ = ["Alternation"]


class Alternation:
    """Takes the two ways by turns and keeps the time of each step; ``begin_step`` belongs to the engine's thread.

    Args:
        ways: Their names.
        enough: Told (seconds measured of all steps, steps of the way with the fewest) whether to stop counting.
    """

    def __init__(self, ways: tuple[str, str], enough: Callable[[float, int], bool]) -> None:
        self.ways = ways
        #: The way of the step that is being computed.
        self.way = ways[0]
        self._done = threading.Event()
        self._enough = enough
        self._steps_s: dict[str, list[float]] = {way: [] for way in ways}
        self._began_at: float | None = None
        self._counts = False

    def begin_step(self, counts: bool) -> None:
        """A step begins, and with it the one before has ended.

        Args:
            counts: Whether it is a step to measure: one new token for each request of the full batch.
        """
        now = time.perf_counter()
        if self._began_at is not None and self._counts:
            self._steps_s[self.way].append(now - self._began_at)
            self._look_whether_enough()
        self.way = self.ways[1] if self.way == self.ways[0] else self.ways[0]
        self._began_at, self._counts = now, counts and not self._done.is_set()

    def wait(self, futures: Sequence[Future[GenerationResult]]) -> None:
        """Waits until there are enough steps, then cancels the requests that were to make them.

        Raises:
            RuntimeError: one of them has ended before.
        """
        while not self._done.wait(0.1):
            if any(future.done() for future in futures):
                raise RuntimeError("a request ended before there were enough steps")
        for future in futures:
            future.cancel()

    def _look_whether_enough(self) -> None:
        total_s = sum(sum(steps_s) for steps_s in self._steps_s.values())
        if self._enough(total_s, min(len(steps_s) for steps_s in self._steps_s.values())):
            self._done.set()

    def median_s(self, way: str) -> float:
        """The median step of a way, in seconds."""
        return statistics.median(self._steps_s[way])

    @property
    def ratio(self) -> float:
        """How many times as long a step of the second way takes: the median of neighbouring steps' ratios."""
        first, second = (self._steps_s[way] for way in self.ways)
        return statistics.median(b / a for a, b in zip(first, second, strict=False))
