"""Telling what was refused."""

from __future__ import annotations

import logging
from collections import Counter

from promptmill_worker.messages import MalformedMessageError

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

#: How many reasons are told each time.
TOLD_REASONS = 10


class Refusals:
    """Tells of them in a few lines a second, whatever floods the queue."""

    def __init__(self) -> None:
        self._untold: Counter[str] = Counter()

    def add(self, error: Exception) -> None:
        """Counts one; the text of other errors than ours would quote the message."""
        reason = str(error) if isinstance(error, MalformedMessageError) else f"can't be read ({type(error).__name__})"
        self._untold[reason] += 1

    def tell(self) -> None:
        """Says what was refused since the last time."""
        untold, self._untold = self._untold, Counter()
        for reason, count in untold.most_common(TOLD_REASONS):
            log.warning("refused and deleted %d message(s): %s", count, reason)
        if len(untold) > TOLD_REASONS:
            left = sum(count for _, count in untold.most_common()[TOLD_REASONS:])
            log.warning("refused and deleted %d more, for %d other reasons", left, len(untold) - TOLD_REASONS)
