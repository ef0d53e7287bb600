"""Zstandard's frames, for ``compression``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from promptmill.errors import InvalidRequestError

__all__ = ["Zstandard"]

#: The header of a frame: ``magic``, and the size of the window.
HEADER_BYTES = 6
BLOCK_HEADER_BYTES = 3
#: The type of a block that is one byte, many times.
REPEATED_BYTE = 1
#: The last block, empty.
LAST_BLOCK = b"\1\0\0"


class Zstandard:
    """See ``compression.Codec``. Python has it from 3.14 on; before, the package ``backports.zstd`` is the same code.

    Raises:
        InvalidRequestError: there is neither.
    """

    #: A frame without a dictionary, a checksum or a size (RFC 8878, 3.1.1).
    magic: ClassVar[bytes] = b"\x28\xb5\x2f\xfd\0"

    def __init__(self) -> None:
        for name in ("compression.zstd", "backports.zstd"):
            try:
                self._zstd: Any = importlib.import_module(name)
                return
            except ImportError:
                continue
        raise InvalidRequestError(".zst files need a package: pip install 'promptmill[batch]'; or use .gz")

    def writer(self) -> _Writer:
        """See ``compression.Codec``."""
        return _Writer(self._zstd.ZstdCompressor())

    def reader(self) -> _Reader:
        """See ``compression.Codec``."""
        return _Reader(self._zstd)

    def open(self, path: Path) -> BinaryIO:
        """See ``compression.Codec``."""
        return cast(BinaryIO, _File(self._zstd.open(path, "rb"), self._zstd.ZstdError))

    def ending(self, torn: bytes) -> tuple[int, bytes]:
        """See ``compression.Codec``."""
        reader, done, kept = self.reader(), 0, 0
        for end in _block_ends(torn):
            if reader.decompress(torn[done:end]).endswith(b"\n"):
                kept = end
            done = end
        return (kept, LAST_BLOCK) if kept else (0, b"")


class _Writer:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def add(self, data: bytes) -> bytes:
        return cast(bytes, self._stream.compress(data, mode=self._stream.FLUSH_BLOCK))

    def end(self) -> bytes:
        return cast(bytes, self._stream.flush(mode=self._stream.FLUSH_FRAME))


class _Reader:
    def __init__(self, zstd: Any) -> None:
        self._stream, self._error = zstd.ZstdDecompressor(), zstd.ZstdError

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        return cast(bytes, self._stream.unused_data)

    def decompress(self, data: bytes) -> bytes:
        try:
            return cast(bytes, self._stream.decompress(data))
        except self._error as error:
            raise ValueError(str(error)) from None


class _File:
    """As much of a file as is used here."""

    def __init__(self, file: Any, error: type[Exception]) -> None:
        self._file, self._error = file, error

    def readline(self, size: int = -1) -> bytes:
        try:
            return cast(bytes, self._file.readline(size))
        except self._error as error:
            raise ValueError(str(error)) from None

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _block_ends(torn: bytes) -> Iterator[int]:
    """Where the blocks of a frame end (RFC 8878, 3.1.1.2), those that are whole."""
    end = HEADER_BYTES
    while (start := end + BLOCK_HEADER_BYTES) <= len(torn):
        header = int.from_bytes(torn[end:start], "little")
        end = start + (1 if header >> 1 & 3 == REPEATED_BYTE else header >> 3)
        if end > len(torn):
            return
        yield end
