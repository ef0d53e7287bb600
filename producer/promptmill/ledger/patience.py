"""Asking again while the broker is away, loads, fails over, or is short of disk or memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis

from promptmill.broker import CONNECTION_ERRORS

__all__ = ["TRANSIENT_ERRORS", "Patience"]

T = TypeVar("T")

#: Errors that a broker answers while it loads, fails over, or is short of disk or memory: the same call may succeed
#: later.
TRANSIENT_ERRORS = (*CONNECTION_ERRORS, redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError)

#: The same, where redis-py has no class for them, or Redis 6.2 wraps them as "Error running script".
TRANSIENT_CODES = ("BUSY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY")

#: The first pause and the longest, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Patience:
    """How long a call is tried again. Thread-safe.

    Args:
        limit_s: In seconds; after that redis-py's own error is raised.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ended = threading.Event()

    def end(self) -> None:
        """Calls that wait for the broker raise now."""
        self._ended.set()

    def ask(self, ask: Callable[[], T]) -> T:
        """``ask()``, and again while it may yet succeed."""
        give_up_at = time.monotonic() + self._limit_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return ask()
            except redis.RedisError as error:
                if not _may_pass(error) or time.monotonic() + pause_s > give_up_at or self._ended.wait(pause_s):
                    raise
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _may_pass(error: redis.RedisError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, TRANSIENT_ERRORS) or any(f"{code} " in str(error) for code in TRANSIENT_CODES)
