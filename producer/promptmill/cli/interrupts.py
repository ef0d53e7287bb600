"""Ctrl-C: the first ends the work in order, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

__all__ = ["INTERRUPTED", "second_interrupt_leaves"]

#: The exit code of what was interrupted.
INTERRUPTED = 130

SHOW_CURSOR = b"\x1b[?25h\n"


def second_interrupt_leaves() -> None:
    """Has the first SIGINT or SIGTERM raise KeyboardInterrupt, and the next one end the process where it is."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _first)


def _first(*_: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _second)
    raise KeyboardInterrupt


def _second(*_: object) -> NoReturn:
    if sys.stderr.isatty():  # a progress bar has hidden it
        os.write(2, SHOW_CURSOR)
    os._exit(INTERRUPTED)
