"""Folders for weights that lie on disk: one for each process, gone with it."""

from __future__ import annotations

import atexit
import fcntl
import shutil
import uuid
from pathlib import Path
from typing import TextIO

__all__ = ["new_offload_folder"]

#: The locks of this process's folders, held until it ends, however it ends.
_held: list[TextIO] = []


def new_offload_folder(cache_dir: Path) -> Path:
    """A new, empty folder below ``cache_dir``, removed when the process ends; those of killed ones are removed now."""
    parent = cache_dir.expanduser() / "offload"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("*.lock"):
        _remove_if_left_over(left)
    lock = parent / f"{uuid.uuid4().hex}.lock"
    stream = lock.open("x")
    fcntl.flock(stream, fcntl.LOCK_EX)
    _held.append(stream)
    folder = lock.with_suffix("")
    folder.mkdir()
    atexit.register(_remove, lock)
    return folder


def _remove_if_left_over(lock: Path) -> None:
    try:
        with lock.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock)
    except OSError:  # its process lives, or another one has just removed it
        return


def _remove(lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
