"""Which lines a file has an answer of, and where: 19 bytes a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import compress, pairwise

__all__ = ["MAX_LINES", "AnswerTable", "State"]

#: Line numbers beyond are nobody's.
MAX_LINES = 1_000_000_000


class State(IntEnum):
    """What a file says of a line."""

    #: Nothing.
    OPEN = 0
    #: Its answer.
    ANSWERED = 1
    #: That it failed.
    FAILED = 2


class AnswerTable:
    """One row a line of the input: its checksum, the digest of its request, how that went, and the answer's place."""

    def __init__(self) -> None:
        self._checksums = array("H")
        self._digests = array("Q")
        self._places = array("Q")
        self._states = bytearray()

    def put(self, number: int, checksum: int, digest: int, state: State, place: int) -> None:
        """The answer of line ``number`` is at ``place`` bytes of the file; an earlier one counts no more."""
        if number >= len(self._states):
            self._grow(number + 1)
        self._checksums[number], self._digests[number] = checksum, digest
        self._states[number], self._places[number] = state, place

    def state(self, number: int, digest: int) -> State:
        """What is known of the line, if its request has this digest."""
        if number >= len(self._states) or self._digests[number] != digest:
            return State.OPEN
        return State(self._states[number])

    def checksum(self, number: int, state: State) -> int | None:
        """The checksum of the line, if it is in this state, whatever its request is."""
        is_there = number < len(self._states) and self._states[number] == state
        return self._checksums[number] if is_there else None

    def digest(self, number: int) -> int:
        """The digest of a line of which something is known."""
        return self._digests[number]

    def drop(self, first: int, end: int | None = None) -> None:
        """What is known of the lines from ``first`` up to, and without, ``end``, or of all from there."""
        stop = len(self._states) if end is None else min(end, len(self._states))
        if first < stop:
            self._states[first:stop] = bytes(stop - first)

    def holds(self, number: int, place: int) -> bool:
        """Whether this is the answer that counts."""
        return number < len(self._states) and self._states[number] != State.OPEN and self._places[number] == place

    def count(self, *states: State) -> int:
        """How many lines are in one of these states."""
        return sum(map(self._states.count, states))

    def places(self) -> Iterator[int]:
        """Where the answers are, in the order of the lines."""
        return compress(self._places, self._states)

    def is_in_order(self) -> bool:
        """Whether the answers are in the order of the lines."""
        return all(place < later for place, later in pairwise(self.places()))

    def _grow(self, needed: int) -> None:
        more = max(needed, len(self._states) * 3 // 2) - len(self._states)
        self._states.extend(bytes(more))
        self._checksums.frombytes(bytes(2 * more))
        self._digests.frombytes(bytes(8 * more))
        self._places.frombytes(bytes(8 * more))
