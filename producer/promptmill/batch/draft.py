"""A file written anew: it is there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from promptmill.batch.compression import Codec

__all__ = ["MEMBER_BYTES", "draft_of", "replace"]

#: A member of a compressed file ends after this much text, in bytes.
MEMBER_BYTES = 1_048_576


def draft_of(path: Path) -> Path:
    """Where the new file is while it is written; a process that was killed leaves it there."""
    return path.with_name(f".{path.name}.promptmill-draft{path.suffix}")


def replace(path: Path, lines: Iterable[bytes], codec: Codec | None, mode: int) -> None:
    """Puts a file of these lines in the place of ``path``.

    Raises:
        OSError: there is no room for it; ``path`` is as it was.
    """
    draft = draft_of(path)
    try:
        with draft.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            _write(file, lines, codec)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:  # a full disk, or Ctrl-C
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write(file: BinaryIO, lines: Iterable[bytes], codec: Codec | None) -> None:
    if codec is None:
        file.writelines(lines)
        return
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= MEMBER_BYTES:
            file.write(_member(block, codec))
            block, size = [], 0
    if block or not file.tell():  # a compressed file without a byte is none
        file.write(_member(block, codec))


def _member(lines: list[bytes], codec: Codec) -> bytes:
    writer = codec.writer()
    return writer.add(b"".join(lines)) + writer.end()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
