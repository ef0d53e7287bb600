"""gzip's members, for ``compression``."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

__all__ = ["Gzip"]

#: zlib's number for the format of gzip.
FORMAT = 31
#: What a flush ends in: an empty block that is stored (RFC 1951, 3.2.4).
FLUSHED = b"\0\0\xff\xff"
#: The last block, empty (RFC 1951, 3.2.6).
LAST_BLOCK = b"\3\0"


class Gzip:
    """See ``compression.Codec``."""

    #: gzip, deflate, no flags, no time (RFC 1952, 2.3).
    magic: ClassVar[bytes] = b"\x1f\x8b\x08\0\0\0\0\0"

    def writer(self) -> _Writer:
        """See ``compression.Codec``."""
        return _Writer()

    def reader(self) -> Any:
        """See ``compression.Codec``."""
        return zlib.decompressobj(wbits=FORMAT)

    def open(self, path: Path) -> BinaryIO:
        """See ``compression.Codec``."""
        return cast(BinaryIO, gzip.open(path, "rb"))

    def ending(self, torn: bytes) -> tuple[int, bytes]:
        """See ``compression.Codec``."""
        for size, ending in reversed(list(_candidates(torn))):
            whole = self.reader()
            try:
                whole.decompress(torn[:size] + ending)
            except zlib.error:  # the bytes of a flush, by chance
                continue
            if whole.eof:
                return size, ending
        return 0, b""


class _Writer:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(level=6, wbits=FORMAT)

    def add(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush(zlib.Z_FINISH)


def _candidates(torn: bytes) -> Iterator[tuple[int, bytes]]:
    """Where lines seem to end in it, and what a member that ends there ends in (RFC 1952, 2.3)."""
    reader = zlib.decompressobj(wbits=FORMAT)
    done = checksum = size = 0
    at = torn.find(FLUSHED)
    while at >= 0:
        end = at + len(FLUSHED)
        try:
            text = reader.decompress(torn[done:end])
        except zlib.error:
            return
        checksum, size, done = zlib.crc32(text, checksum), size + len(text), end
        if text.endswith(b"\n"):
            yield end, LAST_BLOCK + checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
        at = torn.find(FLUSHED, at + 1)
