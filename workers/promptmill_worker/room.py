"""How many more prompts this worker may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

__all__ = ["Places", "Room"]


class Room:
    """Counts free places for prompts; thread-safe.

    Args:
        places: The most prompts this worker holds at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        #: Called after a place became free; the pool hangs Celery's wake-up on it.
        self.on_free: Callable[[], None] = lambda: None

    @property
    def free(self) -> int:
        """Places that nobody holds."""
        return self._free

    def take(self) -> None:
        """Takes one place, free or not: Celery has handed the message over already."""
        with self._lock:
            self._free -= 1

    def extend(self, wanted: int) -> int:
        """Takes up to ``wanted`` more places, as far as there are any; returns how many."""
        with self._lock:
            taken = max(0, min(wanted, self._free))
            self._free -= taken
        return taken

    def give(self, places: int) -> None:
        """Gives places back."""
        if places:
            with self._lock:
                self._free += places
            self.on_free()


class Places:
    """The places of one claim: the one that the pool took for its message, and ``extra`` ones.

    They become free prompt by prompt; the pool's own last, when the message's thread is done. Leaving the block frees
    what is left.
    """

    def __init__(self, room: Room, wanted: int) -> None:
        self._room = room
        self._extra = room.extend(wanted - 1)

    @property
    def count(self) -> int:
        """How many prompts there is a place for."""
        return 1 + self._extra

    def free(self, places: int) -> None:
        """Frees the places of prompts that are answered."""
        given = min(places, self._extra)
        self._extra -= given
        self._room.give(given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.free(self._extra)
