"""A file that one process has for itself."""

from __future__ import annotations

import fcntl
import os
from io import FileIO
from pathlib import Path

from promptmill.errors import InvalidRequestError

__all__ = ["open_locked"]


def open_locked(path: Path) -> FileIO:
    """The file, made if it isn't there, to be read and appended to; nobody else gets it so until it is closed.

    Raises:
        InvalidRequestError: somebody else has it.
        OSError: it can't be opened.
    """
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise InvalidRequestError(
                f"another `promptmill batch` is writing {path.name}: wait for its end, or name another file"
            ) from None
        except FileNotFoundError:
            pass
        # It was replaced between our opening and locking it.
        file.close()
