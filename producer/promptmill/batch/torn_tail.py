"""Mending a file of lines whose writer was killed while it wrote: only whole lines are left."""

from __future__ import annotations

import os
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO

from promptmill.batch.answer import LINE_BEGINS
from promptmill.batch.compression import READ_ERRORS, Codec
from promptmill.errors import InvalidRequestError

__all__ = ["mend"]

#: How much is read at once, in bytes.
BLOCK_BYTES = 65_536
#: How much of a member that is not whole is held in memory, in bytes.
HELD_BYTES = 8 * 1024 * 1024


def mend(file: BinaryIO, codec: Codec | None, name: str) -> None:
    """Cuts off half a line at the end. Of a member without an end, the whole lines become a member that has one.

    Args:
        file: Open for reading and writing, unbuffered.
        codec: How it is compressed.
        name: What to call it in errors.

    Raises:
        InvalidRequestError: what is at its end was not written by a batch, or is damaged; the file is as it was.
    """
    if codec is None:
        _mend_plain(file, name)
    else:
        _mend_compressed(file, codec, name)


def _mend_plain(file: BinaryIO, name: str) -> None:
    size = file.seek(0, os.SEEK_END)
    whole = _end_of_last_line(file, size)
    if whole == size:
        return
    file.seek(whole)
    _check_is_ours(file.read(len(LINE_BEGINS)), name)
    file.truncate(whole)


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    end = size
    while end:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _check_is_ours(head: bytes, name: str) -> None:
    """Half a line is ours if it begins so. After a loss of power its bytes may be zeros."""
    written = head.rstrip(b"\0")
    if not LINE_BEGINS.startswith(written):
        raise InvalidRequestError(
            f"{name} ends in half a line that `promptmill batch` did not write: name another file, or delete that line"
        )


def _mend_compressed(file: BinaryIO, codec: Codec, name: str) -> None:
    start = _start_of_torn_member(file, codec, name)
    if start is None:
        return
    with SpooledTemporaryFile(HELD_BYTES) as held:
        _read_member(file, start, codec, held)
        whole = _end_of_last_line(held, held.tell())  # type: ignore[arg-type]
        held.seek(0)
        head = held.read(len(LINE_BEGINS))
        _check_is_ours(head, name)
        file.truncate(start)
        file.seek(start)
        held.truncate(whole)
        held.seek(0)
        if whole:
            _write_member(file, codec, held)


def _start_of_torn_member(file: BinaryIO, codec: Codec, name: str) -> int | None:
    """Where the last member begins, if it has no end."""
    start = position = file.seek(0)
    reader, data = codec.reader(), b""
    while True:
        if not data:
            data = file.read(BLOCK_BYTES)
            position += len(data)
        if not data:
            return start if position > start else None
        try:
            reader.decompress(data)
        except READ_ERRORS:
            raise InvalidRequestError(
                f"{name} is damaged after {start:,} bytes: uncompress what is left of it, and go on with that as output"
            ) from None
        data = b""
        if reader.eof:
            data = reader.unused_data
            start = position - len(data)
            reader = codec.reader()


def _read_member(file: BinaryIO, start: int, codec: Codec, into: IO[bytes]) -> None:
    reader = codec.reader()
    file.seek(start)
    while data := file.read(BLOCK_BYTES):
        into.write(reader.decompress(data))


def _write_member(file: BinaryIO, codec: Codec, lines: IO[bytes]) -> None:
    writer = codec.writer()
    while data := lines.read(BLOCK_BYTES):
        _write_all(file, writer.add(data))
    _write_all(file, writer.end())


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
