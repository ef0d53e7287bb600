"""Answers that go to standard output or into a pipe: they can't be read again, so there is nothing to resume."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["AnswerStream"]


class AnswerStream:
    """Writes lines, each flushed.

    Args:
        path: A pipe or a device; None is standard output.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = sys.stdout.buffer if path is None else path.open("wb")

    def append(self, line: bytes) -> int:
        """Writes a line, which ends in a line break; returns 0, which is no place."""
        self._file.write(line)
        self._file.flush()
        return 0

    def close(self) -> None:
        """Closes it; standard output stays open."""
        if self._path is not None:
            self._file.close()
