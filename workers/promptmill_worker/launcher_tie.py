"""The worker's end of the socket between it and its launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["tie_to_launcher"]

log = logging.getLogger(__name__)


def tie_to_launcher(fd: int) -> Callable[..., None]:
    """For the worker: has this process end with its launcher, and at once, as what ends that is SIGKILL.

    Args:
        fd: Our end of the socket.

    Returns:
        To be called once tasks are taken; for a Celery signal, so that it takes any values and ignores them.
    """
    launcher = socket.socket(fileno=fd)
    launcher.set_inheritable(False)
    threading.Thread(target=_end_with, args=(launcher,), name="launcher watch", daemon=True).start()

    def tell_ready(**_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the thread sees that, too
            launcher.send(b"+")

    return tell_ready


def _end_with(launcher: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):  # it is gone and had not read what we wrote
        launcher.recv(1)
    log.warning("the launcher is gone; the worker ends")
    os.kill(os.getpid(), signal.SIGKILL)
