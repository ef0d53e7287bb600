"""Compressed files, known by their suffix: .gz and .zst.

Both kinds of file are made of parts, gzip's members and Zstandard's frames, that follow each other and can each be read
alone. Here they are all called members.
"""

from __future__ import annotations

import gzip
import importlib
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from promptmill.errors import InvalidRequestError

__all__ = ["READ_ERRORS", "Codec", "MemberReader", "MemberWriter", "codec_of", "open_to_read"]

#: What reading a file that is cut off or damaged raises. (Zstandard's own error is turned into ValueError.)
READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, ValueError)


class MemberWriter(Protocol):
    """Writes one member."""

    def add(self, data: bytes) -> bytes:
        """``data``, compressed so that a reader can decompress all of it before more follows."""

    def end(self) -> bytes:
        """The end of the member."""


class MemberReader(Protocol):
    """Reads one member, as the standard library's decompressors do."""

    @property
    def eof(self) -> bool:
        """Whether its end was read."""

    @property
    def unused_data(self) -> bytes:
        """What came after its end."""

    def decompress(self, data: bytes) -> bytes:
        """What these next bytes hold."""


class Codec(Protocol):
    """One way to compress."""

    def writer(self) -> MemberWriter:
        """For a new member."""

    def reader(self) -> MemberReader:
        """For a member."""

    def open(self, path: Path) -> BinaryIO:
        """The whole file, decompressed."""


def codec_of(path: Path) -> Codec | None:
    """The codec that the file's suffix asks for; None for a file as it is.

    Raises:
        InvalidRequestError: it is .zst, and the package for it is not installed.
    """
    if path.suffix == ".gz":
        return _Gzip()
    return _Zstandard() if path.suffix == ".zst" else None


def open_to_read(path: Path) -> BinaryIO:
    """The file, decompressed; one without a byte is empty, whatever its suffix."""
    codec = codec_of(path)
    return codec.open(path) if codec is not None and path.stat().st_size else path.open("rb")


class _Gzip:
    def writer(self) -> MemberWriter:
        return _GzipWriter()

    def reader(self) -> MemberReader:
        return zlib.decompressobj(wbits=31)

    def open(self, path: Path) -> BinaryIO:
        return cast(BinaryIO, gzip.open(path, "rb"))


class _GzipWriter:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(level=6, wbits=31)

    def add(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush(zlib.Z_FINISH)


class _Zstandard:
    """Python has it from 3.14 on; before, the package ``backports.zstd`` is the same code."""

    def __init__(self) -> None:
        for name in ("compression.zstd", "backports.zstd"):
            try:
                self._zstd: Any = importlib.import_module(name)
                return
            except ImportError:
                continue
        raise InvalidRequestError(".zst files need a package: pip install 'promptmill[batch]'; or use .gz")

    def writer(self) -> MemberWriter:
        return _ZstandardWriter(self._zstd.ZstdCompressor())

    def reader(self) -> MemberReader:
        return _ZstandardReader(self._zstd)

    def open(self, path: Path) -> BinaryIO:
        return cast(BinaryIO, _ZstandardFile(self._zstd.open(path, "rb"), self._zstd.ZstdError))


class _ZstandardWriter:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def add(self, data: bytes) -> bytes:
        return cast(bytes, self._stream.compress(data, mode=self._stream.FLUSH_BLOCK))

    def end(self) -> bytes:
        return cast(bytes, self._stream.flush(mode=self._stream.FLUSH_FRAME))


class _ZstandardReader:
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


class _ZstandardFile:
    """As much of a file as is used here."""

    def __init__(self, file: Any, error: type[Exception]) -> None:
        self._file, self._error = file, error

    def readline(self, size: int = -1) -> bytes:
        try:
            return cast(bytes, self._file.readline(size))
        except self._error as error:
            raise ValueError(str(error)) from None

    def __enter__(self) -> _ZstandardFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
