"""Saying that the broker is away: once, however many tries it takes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis

__all__ = ["Outage"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outage:
    """Logs that the broker is away and that it is back, whichever parts of a client notice it. Thread-safe.

    One failure is no outage yet, unless it was a long silence, in which no other part heard of the broker either:
    something on the way may have dropped one connection.

    Args:
        broker: What to call the broker, without its password.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        #: When each part's tries began to fail, on the monotonic clock.
        self._failing: dict[str, float] = {}
        #: When a part last heard of the broker, on the monotonic clock.
        self._heard_at = -math.inf
        self._said = False
        self._lock = threading.Lock()

    @property
    def lasts(self) -> bool:
        """Whether the broker is away."""
        return self._said

    async def watch(self, part: str, ask: Callable[[], Awaitable[T]]) -> T:
        """``ask()``, which is one try of ``part``."""
        began_at = time.monotonic()
        try:
            answer = await ask()
        except redis.RedisError as error:
            self.failed(part, error, began_at)
            raise
        self.passed(part)
        return answer

    def failed(self, part: str, error: redis.RedisError, began_at: float) -> None:
        """``part`` of the client has tried since ``began_at`` on the monotonic clock, and will try again."""
        with self._lock:
            again = part in self._failing
            self._failing.setdefault(part, time.monotonic())
            silence = isinstance(error, redis.TimeoutError) and self._heard_at < began_at
            if self._said or not (again or silence):
                return
            self._said = True
        # The type alone: a driver's message may quote what it was sent.
        log.warning("the broker at %s is away (%s); waiting for it", self._broker, type(error).__name__)

    def passed(self, part: str) -> None:
        """A try of ``part`` has succeeded."""
        self._heard_at = time.monotonic()
        if part not in self._failing:  # nearly always: no lock that a forked child could find held
            return
        with self._lock:
            began_at = self._failing.pop(part, None)
            if began_at is None or self._failing or not self._said:
                return
            self._said = False
        log.info("the broker at %s is back after %.0f s", self._broker, time.monotonic() - began_at)

    def gave_up(self, part: str) -> None:
        """``part`` will not try again."""
        with self._lock:
            self._failing.pop(part, None)
            self._said = self._said and bool(self._failing)
