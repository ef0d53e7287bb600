"""The lines of a batch, as they are in its file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from promptmill.batch.compression import READ_ERRORS, check_is_plain, codec_of, open_to_read
from promptmill.batch.pipe import Pipe
from promptmill.errors import InvalidRequestError
from promptmill.source import NotYet

__all__ = ["MAX_LINE_BYTES", "InputFile"]

#: Of a line that is longer only this much is read, and one byte more.
MAX_LINE_BYTES = 64 * 1024 * 1024

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputFile:
    """A file of lines, in UTF-8; compressed, if its name ends in .gz or .zst.

    Args:
        path: The file; None is standard input.

    Raises:
        InvalidRequestError: standard input is closed, or a compressed file is a pipe.
    """

    def __init__(self, path: Path | None) -> None:
        if path is None and sys.stdin is None:
            raise InvalidRequestError("standard input is closed: name a file, or open it")
        self._path = path
        self.name = "standard input" if path is None else path.name
        #: Whether it can be read more than once.
        self.is_lasting = path is not None and path.is_file()
        if path is not None and not self.is_lasting:
            check_is_plain(path)

    def count(self) -> int | None:
        """How many lines have something on them; None of a pipe, which is read once.

        Raises:
            InvalidRequestError: it is damaged.
        """
        return sum(1 for _ in self.lines()) if self.is_lasting else None

    def lines(self) -> Iterator[tuple[int, bytes] | NotYet]:
        """(number, counted from 1; the line without white space around it) of each line that has something on it.

        Of a pipe also ``NotYet``, where the next line is still to come.

        Raises:
            InvalidRequestError: it is damaged.
        """
        number, is_cut = 0, False
        with self._open() as file:
            try:
                while line := file.readline(MAX_LINE_BYTES + 1):
                    if isinstance(line, NotYet):
                        yield line
                        continue
                    is_rest, is_cut = is_cut, len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")
                    if is_rest:
                        continue
                    number += 1
                    line = line.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
                    if line:
                        yield number, line
            except READ_ERRORS as error:
                raise InvalidRequestError(
                    f"{self.name} is damaged or cut off after line {number:,} ({type(error).__name__}): make it anew, "
                    "or uncompress what is left of it"
                ) from None

    @contextmanager
    def _open(self) -> Iterator[BinaryIO | Pipe]:
        if self._path is None:
            yield Pipe(sys.stdin.fileno())
        elif self.is_lasting:
            with open_to_read(self._path, codec_of(self._path)) as file:
                yield file
        else:
            with self._path.open("rb", buffering=0) as pipe:
                yield Pipe(pipe.fileno())
