"""A file of answers: locked, mended, appended to, and in the end written anew without what counts no more."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from pydantic_core import from_json

from promptmill.batch import draft
from promptmill.batch.compression import Codec, MemberWriter, codec_of, open_to_read
from promptmill.batch.locked_file import open_locked
from promptmill.batch.torn_tail import mend
from promptmill.errors import InvalidRequestError

__all__ = ["AnswerFile"]


class AnswerFile:
    """Appends whole lines to a file, each there for every reader when ``append`` returns. Belongs to one thread.

    While it is open, no other ``AnswerFile`` can be opened on the same path. Whatever ends the process, the next one to
    open it finds every line that ``append`` has returned for, and cuts off half a line after these.

    Args:
        path: The file, which is made if it isn't there; compressed, if its name ends in .gz or .zst.

    Raises:
        InvalidRequestError: another process has it open, or a batch did not write it.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        #: The file itself, where ``path`` is a link: it is replaced, not the link.
        self.path = path.resolve()
        self._codec: Codec | None = codec_of(path)
        self._file = open_locked(self.path)
        self._member: MemberWriter | None = None
        self._member_bytes = 0
        #: Whether nothing is half written.
        self._is_whole = True
        #: How many lines it has, and how long it is, uncompressed, in bytes; known once ``lines`` was read to its end.
        self.line_count = 0
        self._end = 0
        try:
            draft.draft_of(self.path).unlink(missing_ok=True)
            mend(self._file, self._codec, self.path.name)
        except BaseException:
            self._file.close()
            raise

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place, the line's object) of each line; to be read to its end before ``append``.

        Raises:
            InvalidRequestError: a line is no object of JSON.
        """
        self.line_count = self._end = 0
        for place, line in _lines(self.path, self._codec):
            self.line_count += 1
            self._end = place + len(line)
            try:
                fields = from_json(line)
            except ValueError:
                fields = None
            if not isinstance(fields, dict):
                raise self.stranger()
            yield place, fields

    def stranger(self) -> InvalidRequestError:
        """What is to be raised because of the line that was read last."""
        return InvalidRequestError(
            f"{self.path.name} has a line that `promptmill batch` did not write, line {self.line_count:,}: name "
            "another file, or delete that line"
        )

    def empty(self) -> None:
        """Takes all lines away."""
        self._file.truncate(0)
        self.line_count = self._end = 0

    def append(self, line: bytes) -> int:
        """Writes a line, which ends in a line break; returns its place.

        Raises:
            OSError: it can't be written.
        """
        place = self._end
        self._is_whole = False
        if self._codec is None:
            self._write(line)
        else:
            self._member = self._member or self._codec.writer()
            self._write(self._member.add(line))
            self._member_bytes += len(line)
            if self._member_bytes >= draft.MEMBER_BYTES:
                self._end_member()
        self._end += len(line)
        self.line_count += 1
        self._is_whole = True
        return place

    def rewrite(self, places: Iterable[int] | None, keeps: Any) -> None:
        """Replaces the file by one with some of its lines, which is there whole or not at all; then it is closed.

        Args:
            places: Those lines' places, in the order that is wanted; None for the order they have.
            keeps: Where ``places`` is None, whether a line is kept: called with its place and its object.

        Raises:
            OSError: there is no room for it; the file is as it was.
        """
        self._end_member()
        lines: Iterable[bytes]
        if places is None:
            lines = (line for place, line in _lines(self.path, self._codec) if keeps(place, from_json(line)))
        else:
            lines = self._at(places)
        mode = stat.S_IMODE(os.fstat(self._file.fileno()).st_mode)
        draft.replace(self.path, lines, self._codec, mode)
        self._file.close()

    def close(self) -> None:
        """Ends the file: it is whole, on the disk, and free for others."""
        if self._file.closed:
            return
        try:
            if self._is_whole:
                self._end_member()
                if self._codec is not None and not self._file.seek(0, os.SEEK_END):
                    self._write(self._codec.writer().end())  # a compressed file without a byte is none
            else:  # interrupted in the midst of a line
                with suppress(OSError):  # on a full disk: then it is mended when it is opened again
                    mend(self._file, self._codec, self.path.name)
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _at(self, places: Iterable[int]) -> Iterator[bytes]:
        """The lines at these places; a compressed file is uncompressed first, in a file without a name."""
        with _seekable(self.path, self._codec) as file:
            for place in places:
                file.seek(place)
                yield file.readline()

    def _end_member(self) -> None:
        if self._member is not None:
            self._write(self._member.end())
            self._member, self._member_bytes = None, 0

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file.fileno(), data) :]
        except OSError as error:
            way_out = f"{error.strerror}; mend that, and the same command goes on with the rest"
            raise OSError(error.errno, way_out, str(self.path)) from None


def _lines(path: Path, codec: Codec | None) -> Iterator[tuple[int, bytes]]:
    place = 0
    with open_to_read(path, codec) as file:
        while line := file.readline():
            yield place, line
            place += len(line)


def _seekable(path: Path, codec: Codec | None) -> BinaryIO:
    if codec is None:
        return path.open("rb")
    plain = TemporaryFile(dir=path.parent)  # noqa: SIM115
    plain.writelines(line for _, line in _lines(path, codec))
    return plain
