"""How many requests a static batch may hold: fewer after one did not fit the memory, and more again later."""

from __future__ import annotations

__all__ = ["BatchLimit"]

#: After so many batches without a failure the limit doubles; each halving doubles that number, so growing in vain
#: becomes rare.
GROWS_AFTER_BATCHES = 10


class BatchLimit:
    """The most requests in one batch.

    Args:
        full: As it was set.
    """

    def __init__(self, full: int) -> None:
        self.now = full
        self._full = full
        self._patience = GROWS_AFTER_BATCHES
        #: How many batches have to fit before it doubles.
        self._left = 0

    def did_not_fit(self, requests: int) -> bool:
        """A batch of so many ran out of memory; returns whether a smaller one is worth a try."""
        if requests == 1:  # all the halving may have been for the sake of this one; if not, it starts over
            self.now, self._patience = self._full, GROWS_AFTER_BATCHES
            return False
        self.now = max(1, min(self.now, requests) // 2)
        self._left = self._patience
        self._patience *= 2
        return True

    def did_fit(self) -> None:
        """A batch ran to its end."""
        self._left -= 1
        if self._left <= 0:
            self._left = self._patience
            self.now = min(self._full, 2 * self.now)
