"""In which order claimed prompts go into the engine."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

__all__ = ["MOST_PASSED", "WaitingLine"]

T = TypeVar("T")

#: After so many that went before one of a lower priority it is that one's turn, or it might wait for ever.
MOST_PASSED = 8


class WaitingLine(Generic[T]):
    """Higher priorities first, in each the lower turn, and in each turn who came first. Not thread-safe."""

    def __init__(self) -> None:
        #: By priority: (turn, arrival, who waits).
        self._heaps: dict[int, list[tuple[float, int, T]]] = {}
        self._arrivals = itertools.count()
        #: How many went before one of a lower priority that waits, since the last of those had its turn.
        self._passed = 0

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def push(self, waiter: T, priority: int, turn: float) -> None:
        """Adds one; as everywhere, a smaller number is a higher priority."""
        heapq.heappush(self._heaps.setdefault(priority, []), (turn, next(self._arrivals), waiter))

    def pop(self) -> T:
        """Takes out the next; there has to be one."""
        priority = self._next_priority()
        _, _, waiter = heapq.heappop(self._heaps[priority])
        if not self._heaps[priority]:
            del self._heaps[priority]
        return waiter

    def remove(self, waiter: T) -> None:
        """Takes out one, if it is there."""
        for priority, heap in self._heaps.items():
            left = [entry for entry in heap if entry[2] != waiter]
            if len(left) < len(heap):
                heapq.heapify(left)
                self._heaps[priority] = left
                if not left:
                    del self._heaps[priority]
                return

    def clear(self) -> list[T]:
        """Takes out all."""
        waiters = [waiter for heap in self._heaps.values() for _, _, waiter in heap]
        self._heaps.clear()
        return waiters

    def _next_priority(self) -> int:
        highest, *lower = sorted(self._heaps)
        self._passed = self._passed + 1 if lower else 0
        if self._passed <= MOST_PASSED:
            return highest
        self._passed = 0
        return min(lower, key=lambda priority: self._heaps[priority][0][1])
