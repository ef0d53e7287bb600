"""The folder of what the monitor keeps over restarts: what Flower has seen, and the secret that signs its cookies."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from promptmill.errors import InvalidSettingError

__all__ = ["StateFolder"]


class StateFolder:
    """A folder that only this user can enter, taken for one monitor until the process ends.

    Only this user, because Flower keeps Python objects in it, and to read those is to run whatever wrote them.

    Raises:
        InvalidSettingError: it can't be made or written to, others can write to it, or another monitor has it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._folder.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise InvalidSettingError(f"state_dir {str(folder)!r} is another user's, or others can write to it")
            self._lock = os.open(self._folder / "monitor.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidSettingError(
                f"state_dir {str(folder)!r} is in use by another monitor: stop that one, or give this one another"
            ) from None
        except OSError as error:
            raise InvalidSettingError(f"state_dir {str(folder)!r} can't be used: {error.strerror}") from None

    @property
    def database(self) -> str:
        """Path of Flower's database."""
        return str(self._folder / "flower")

    def cookie_secret(self) -> str:
        """Signs the cookies of who has logged in; the same after a restart, so that he still is."""
        file = self._folder / "cookie_secret"
        try:
            return file.read_text(encoding="ascii")
        except FileNotFoundError:
            secret = secrets.token_urlsafe(64)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
                output.write(secret)
            return secret
