"""Answers that go to standard output or into a pipe: they can't be read again, so there is nothing to resume."""

from __future__ import annotations

import sys
from pathlib import Path

from promptmill.batch.compression import check_is_plain
from promptmill.errors import InvalidRequestError

__all__ = ["AnswerStream"]


class AnswerStream:
    """Writes lines, each flushed.

    Args:
        path: A pipe or a device; None is standard output.

    Raises:
        InvalidRequestError: standard output is closed, or the pipe's name asks for compression.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path | None) -> None:
        if path is None and sys.stdout is None:
            raise InvalidRequestError("standard output is closed: name a file as output, or open it")
        if path is not None:
            check_is_plain(path)
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
