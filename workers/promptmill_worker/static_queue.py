"""The rows that wait for a static batch."""

from __future__ import annotations

import threading
from collections import deque

from promptmill_worker.static_row import Row

__all__ = ["RowQueue"]

#: An idle engine begins when nothing more has come for so long, or it would begin with a batch of one.
GATHER_S = 0.02


class RowQueue:
    """First in, first out; any thread may call it."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._news = threading.Condition()
        self._closed = False

    def put(self, rows: list[Row]) -> None:
        """Adds rows at the end."""
        with self._news:
            self._rows.extend(rows)
            self._news.notify()

    def put_back(self, rows: list[Row]) -> None:
        """Adds rows that were taken, in front of the others."""
        with self._news:
            self._rows.extendleft(reversed(rows))

    def take(self, most: int, one_length: bool) -> list[Row]:
        """Waits for rows, and takes the next batch of them; none, once it is closed.

        Args:
            most: How many.
            one_length: Only such as have as many tokens as the first.
        """
        with self._news:
            while not self._closed:
                # Who is cancelled while it waits is seen here.
                self._rows = deque(row for row in self._rows if row.live)
                if self._rows:
                    return self._batch(most, one_length)
                self._news.wait()
                while len(self._rows) < most and self._news.wait(GATHER_S):
                    pass
        return []

    def close(self) -> None:
        """Ends all waiting; what is in it is dropped."""
        with self._news:
            self._closed = True
            self._rows.clear()
            self._news.notify()

    def _batch(self, most: int, one_length: bool) -> list[Row]:
        length = len(self._rows[0].input_ids)
        batch = [row for row in self._rows if not one_length or len(row.input_ids) == length][:most]
        self._rows = deque(row for row in self._rows if row not in batch)
        return batch
