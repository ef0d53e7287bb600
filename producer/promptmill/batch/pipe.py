"""Lines that come through a pipe or from a terminal, whenever they come."""

from __future__ import annotations

import os
import select

from promptmill.source import NotYet

__all__ = ["Pipe"]

#: How long a line is waited for, in seconds.
WAIT_S = 0.05
#: How much is read at once, in bytes.
BLOCK_BYTES = 65_536


class Pipe:
    """Reads lines as they come. Belongs to one thread.

    Args:
        descriptor: What to read; nobody else reads it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        #: What was read and not returned, and how much of it has no line break.
        self._held = bytearray()
        self._searched = 0

    def readline(self, size: int) -> bytes | NotYet:
        """The next line with its line break, at most ``size`` bytes of it; empty at the end."""
        while not (end := self._end_of_line(size)):
            if not select.select([self._descriptor], [], [], WAIT_S)[0]:
                return NotYet.NOT_YET
            data = os.read(self._descriptor, BLOCK_BYTES)
            if not data:
                end = len(self._held)
                break
            self._held += data
        line = bytes(self._held[:end])
        del self._held[:end]
        self._searched = 0
        return line

    def _end_of_line(self, size: int) -> int:
        """How long the line is, or its part; 0 if it is not there yet."""
        end = self._held.find(b"\n", self._searched, size) + 1
        self._searched = len(self._held)
        return end or (size if self._searched >= size else 0)
