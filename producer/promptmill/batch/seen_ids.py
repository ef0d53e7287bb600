"""Whether an id was there before, of millions, in some 20 bytes each."""

from __future__ import annotations

from array import array

__all__ = ["SeenIds"]

_BITS = (1 << 64) - 1


class SeenIds:
    """A set of 64-bit hashes in one array: open addressing, at most half full."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, custom_id: str | int) -> bool:
        """Adds it; returns whether it is new."""
        key = hash(str(custom_id)) & _BITS or 1
        slot = self._slot(key)
        if self._slots[slot] == key:
            return False
        self._slots[slot] = key
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._double()
        return True

    def _slot(self, key: int) -> int:
        """Where it is, or will be."""
        slot = key % len(self._slots)
        while self._slots[slot] not in (0, key):
            slot = (slot + 1) % len(self._slots)
        return slot

    def _double(self) -> None:
        old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for key in old:
            if key:
                self._slots[self._slot(key)] = key
