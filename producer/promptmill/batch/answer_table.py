"""Which lines are answered, and where: 17 bytes a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum

__all__ = ["MAX_LINES", "AnswerTable", "State"]

#: Line numbers beyond are nobody's.
MAX_LINES = 1_000_000_000


class State(IntEnum):
    """What is known of a line."""

    #: It has no answer.
    OPEN = 0
    #: It is answered, in the output.
    ANSWERED = 1
    #: It failed, and the output says so.
    FAILED = 2
    #: It failed, and the file of errors says so.
    FAILED_APART = 3


class AnswerTable:
    """One row a line of the input: the digest of the request that was answered, how it went, and the answer's place."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._places = array("Q")
        self._states = bytearray()

    def put(self, number: int, digest: int, state: State, place: int) -> None:
        """The answer of line ``number`` is at ``place`` bytes of its file; an earlier one counts no more."""
        if number >= len(self._states):
            self._grow(number + 1)
        self._digests[number], self._places[number], self._states[number] = digest, place, state

    def state(self, number: int, digest: int) -> State:
        """What is known of the line, if its request has this digest."""
        if number >= len(self._states) or self._digests[number] != digest:
            return State.OPEN
        return State(self._states[number])

    def is_answered(self, number: int) -> bool:
        """Whether the line has an answer that is no failure, of whatever request."""
        return number < len(self._states) and self._states[number] == State.ANSWERED

    def drop(self, first: int, end: int | None = None) -> None:
        """What is known of the lines from ``first`` up to, and without, ``end``, or of all from there."""
        stop = len(self._states) if end is None else min(end, len(self._states))
        if first < stop:
            self._states[first:stop] = bytes(stop - first)

    def holds(self, number: int, place: int, *states: State) -> bool:
        """Whether this is the answer that counts."""
        return number < len(self._states) and self._states[number] in states and self._places[number] == place

    def count(self, *states: State) -> int:
        """How many lines are in one of these states."""
        return sum(self._states.count(state) for state in states)

    def places(self, *states: State) -> Iterator[int]:
        """Where their answers are, in the order of the lines."""
        return (place for state, place in zip(self._states, self._places, strict=True) if state in states)

    def is_in_order(self, *states: State) -> bool:
        """Whether their answers are in the order of the lines."""
        last = -1
        for place in self.places(*states):
            if place < last:
                return False
            last = place
        return True

    def _grow(self, needed: int) -> None:
        more = max(needed, len(self._states) * 3 // 2) - len(self._states)
        self._states.extend(bytes(more))
        self._digests.frombytes(bytes(8 * more))
        self._places.frombytes(bytes(8 * more))
