"""The prompts that ``map`` is given, read a chunk at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Iterable, Sized
from enum import Enum
from typing import Any, Generic, TypeVar

__all__ = ["NotYet", "Source"]

Given = TypeVar("Given")
Item = TypeVar("Item")

#: How long the reading of a chunk may take, in seconds; then it is sent with what it has.
PATIENCE_S = 0.1


class NotYet(Enum):
    """What an iterable may give in place of an item that is not there yet, after a short wait for it."""

    NOT_YET = "not yet"


class Source(Generic[Given, Item]):
    """Reads any iterable, no further than it is asked to. Belongs to the one who reads.

    Args:
        given: The iterable, of either kind; a ``NotYet`` in it is no item.
        convert: Makes an item of what it holds.
        total: How many it holds, if that is known; a collection's own length otherwise.
    """

    def __init__(
        self,
        given: Iterable[Given | NotYet] | AsyncIterable[Given | NotYet],
        convert: Callable[[Given], Item],
        total: int | None = None,
    ) -> None:
        self._given: Any = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        self._is_async = isinstance(given, AsyncIterable)
        self._convert = convert
        #: How many there are in all; None if nobody knows.
        self.total = len(given) if total is None and isinstance(given, Sized) else total
        #: Whether all was read.
        self.ended = False
        #: Whether the last ``take`` had to wait for the iterable.
        self.lags = False

    async def take(self, count: int) -> list[Item]:
        """The next ``count`` items; fewer where it ends or lags, perhaps none."""
        items: list[Item] = []
        self.lags = False
        impatient_at = time.monotonic() + PATIENCE_S
        while len(items) < count and not self.lags:
            try:
                given = await anext(self._given) if self._is_async else next(self._given)
            except (StopIteration, StopAsyncIteration):
                self.ended = True
                break
            if given is NotYet.NOT_YET:
                self.lags = True
            else:
                items.append(self._convert(given))
                self.lags = time.monotonic() > impatient_at
        return items
