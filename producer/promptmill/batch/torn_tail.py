"""Mending a file of lines whose writer was killed while it wrote: only whole lines are left.

No line that is whole is ever taken away, so that whoever is killed while mending leaves a file to be mended.
"""

from __future__ import annotations

import os
from io import BufferedReader, FileIO

from promptmill.batch.answer import may_be_ours
from promptmill.batch.compression import READ_ERRORS, Codec
from promptmill.errors import InvalidRequestError

__all__ = ["mend"]

#: How much is read at once, in bytes.
BLOCK_BYTES = 65_536


def mend(file: FileIO, codec: Codec | None, name: str) -> None:
    """Cuts off half a line at the end, and gives a member without an end one.

    Args:
        file: Open for reading and for appending.
        codec: How it is compressed.
        name: What to call it in errors.

    Raises:
        InvalidRequestError: what is at its end was not written by a batch, or is damaged; the file is as it was.
        OSError: there is no room for the member's end; the file can be mended later.
    """
    if codec is None:
        _mend_plain(file, name)
    else:
        _mend_compressed(file, codec, name)


def _mend_plain(file: FileIO, name: str) -> None:
    size = file.seek(0, os.SEEK_END)
    whole = _end_of_last_line(file, size)
    if whole == size:
        return
    for place in (0, whole):
        _check_is_ours(_line_at(file, place), name)
    file.truncate(whole)


def _end_of_last_line(file: FileIO, size: int) -> int:
    end = size
    while end:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _line_at(file: FileIO, place: int) -> bytes:
    reader = BufferedReader(file)
    reader.seek(place)
    line = reader.readline()
    reader.detach()  # or it would close the file
    return line


def _check_is_ours(line: bytes, name: str) -> None:
    if not may_be_ours(line):
        raise _stranger(name)


def _mend_compressed(file: FileIO, codec: Codec, name: str) -> None:
    try:
        start, torn = _torn_member(file, codec, _size(file), name)
    except InvalidRequestError:  # a loss of power leaves zeros
        size = _size_without_zeros(file)
        if size == _size(file):
            raise
        start, torn = _torn_member(file, codec, size, name)
    if not torn:
        return
    if not codec.magic.startswith(torn[: len(codec.magic)]):
        raise _stranger(name)
    _check_is_ours(codec.reader().decompress(torn).split(b"\n", 1)[0], name)
    kept, ending = codec.ending(torn)
    if codec.magic in torn[max(1, kept) :]:  # it is not the last one
        raise _damaged(name, start)
    file.truncate(start + kept)
    while ending:
        ending = ending[file.write(ending) :]


def _torn_member(file: FileIO, codec: Codec, size: int, name: str) -> tuple[int, bytes]:
    """Where the last member begins, and its bytes if it has no end; of the first ``size`` bytes."""
    start = position = file.seek(0)
    reader, data = codec.reader(), b""
    while True:
        if not data:
            data = file.read(min(BLOCK_BYTES, size - position))
            position += len(data)
        if not data:
            file.seek(start)
            return start, file.read(size - start)
        try:
            reader.decompress(data)
        except READ_ERRORS:
            raise _damaged(name, start) from None
        data = b""
        if reader.eof:
            data = reader.unused_data
            start = position - len(data)
            reader = codec.reader()


def _stranger(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name} ends in half a line, and `promptmill batch` did not write it: name another file"
    )


def _damaged(name: str, start: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name} is damaged after {start:,} bytes: uncompress what is left of it, and go on with that as output"
    )


def _size(file: FileIO) -> int:
    return file.seek(0, os.SEEK_END)


def _size_without_zeros(file: FileIO) -> int:
    end = _size(file)
    while end:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        if written := file.read(end - start).rstrip(b"\0"):
            return start + len(written)
        end = start
    return 0
