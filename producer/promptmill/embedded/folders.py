"""The folders of an embedded broker: a private one for its socket, and a locked one for its data."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
import time
from pathlib import Path

from promptmill.errors import BrokerUnavailableError, InvalidSettingError

__all__ = ["lock_folder", "make_folder", "new_private_folder"]

#: How long to wait for a folder whose last broker is still saving, in seconds.
HANDOVER_TIMEOUT_S = 3.0


def new_private_folder() -> Path:
    """Path of a temporary folder that doesn't exist yet, short enough for a unix socket in it."""
    parent = tempfile.gettempdir()
    # A socket's address holds 103 bytes on macOS, 107 on Linux, and ours takes 35. It also has to fit a URL.
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,65}", parent):
        parent = "/tmp"  # noqa: S108 - the folder's name is random, and making it fails where it exists
    return Path(parent) / f"promptmill-{secrets.token_hex(8)}"


def make_folder(folder: Path, *, exist_ok: bool) -> None:
    """Make a folder, and those above it, that only this user can enter.

    Raises:
        InvalidSettingError: it can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise _unusable(folder, error) from None


def lock_folder(folder: Path) -> int:
    """Take a folder for one broker; make it if need be.

    Returns:
        File descriptor of the lock. Processes that inherit it hold the lock too: the folder is free again when
        the last of them has closed it or ended, in whatever way.

    Raises:
        InvalidSettingError: the folder can't be made or written to.
        BrokerUnavailableError: another broker has it.
    """
    make_folder(folder, exist_ok=True)
    try:
        lock = os.open(folder / "promptmill.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from None
    deadline = time.monotonic() + HANDOVER_TIMEOUT_S
    while not _locked(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise BrokerUnavailableError(
                f"directory {str(folder)!r} is in use by another embedded broker: "
                "stop that one, or take another directory"
            )
        time.sleep(0.05)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unusable(folder: Path, error: OSError) -> InvalidSettingError:
    return InvalidSettingError(f"the embedded broker can't use directory {str(folder)!r}: {error.strerror}")
