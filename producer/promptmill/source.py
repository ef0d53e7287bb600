"""The prompts that ``map`` is given, read a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sized
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Source"]

Given = TypeVar("Given")
Item = TypeVar("Item")


class Source(Generic[Given, Item]):
    """Reads any iterable, no further than it is asked to. Belongs to the one who reads.

    Args:
        given: The iterable, of either kind.
        convert: Makes an item of what it holds.
        total: How many it holds, if that is known; a collection's own length otherwise.
    """

    def __init__(
        self, given: Iterable[Given] | AsyncIterable[Given], convert: Callable[[Given], Item], total: int | None = None
    ) -> None:
        self._given = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        self._convert = convert
        #: How many there are in all; None if nobody knows.
        self.total = len(given) if total is None and isinstance(given, Sized) else total

    async def take(self, count: int) -> list[Item]:
        """The next ``count`` items; fewer where it ends."""
        if not isinstance(self._given, AsyncIterable):
            return [self._convert(given) for given in islice(self._given, count)]
        items: list[Item] = []
        while len(items) < count:
            try:
                items.append(self._convert(await anext(self._given)))
            except StopAsyncIteration:
                break
        return items
