"""Compressed files, known by their suffix: .gz and .zst.

Both kinds of file are made of parts, gzip's members and Zstandard's frames, that follow each other and can each be read
alone. Here they are all called members.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

from promptmill.batch.gzip_codec import Gzip
from promptmill.batch.zstandard_codec import Zstandard
from promptmill.errors import InvalidRequestError

__all__ = ["READ_ERRORS", "Codec", "MemberReader", "MemberWriter", "check_is_plain", "codec_of", "open_to_read"]

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

    #: What each member of its writers begins with.
    magic: ClassVar[bytes]

    def writer(self) -> MemberWriter:
        """For a new member."""

    def reader(self) -> MemberReader:
        """For a member."""

    def open(self, path: Path) -> BinaryIO:
        """The whole file, decompressed."""

    def ending(self, torn: bytes) -> tuple[int, bytes]:
        """What makes a member of whole lines of one that lacks its end; a writer was given its lines one by one.

        Returns:
            How much of it to keep, in bytes, and what is then to follow; (0, b"") if it has no whole line.
        """


def codec_of(path: Path) -> Codec | None:
    """The codec that the file's suffix asks for; None for a file as it is.

    Raises:
        InvalidRequestError: it is .zst, and the package for it is not installed.
    """
    if path.suffix == ".gz":
        return Gzip()
    return Zstandard() if path.suffix == ".zst" else None


def check_is_plain(pipe: Path) -> None:
    """What comes through a pipe is read and written as it is.

    Raises:
        InvalidRequestError: its suffix asks for a codec.
    """
    if pipe.suffix in (".gz", ".zst"):
        raise InvalidRequestError(
            f"{pipe.name} is a pipe, and only files are compressed here: name it without {pipe.suffix}, and have zcat, "
            "gzip or zstd at its other end"
        )


def open_to_read(path: Path, codec: Codec | None) -> BinaryIO:
    """The file, decompressed; one without a byte is empty, whatever its codec."""
    return codec.open(path) if codec is not None and path.stat().st_size else path.open("rb")
