"""Sending calls to the broker, again while it is away, loads, fails over, or is short of disk or memory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis

from promptmill.broker import CONNECTION_ERRORS
from promptmill.ledger.call import Call
from promptmill.transport import Transport

__all__ = ["Asker"]

T = TypeVar("T")

#: Errors that a broker answers while it loads, fails over, or is short of disk or memory: the same call may succeed
#: later. (That a script is unknown also right after it was loaded: the broker was restarted in between.)
TRANSIENT_ERRORS = (
    *CONNECTION_ERRORS,
    redis.exceptions.NoScriptError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
)

#: The same, where redis-py has no class for them, or Redis 6.2 wraps them as "Error running script".
TRANSIENT_CODES = ("BUSY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY")

#: The first pause and the longest, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Asker:
    """Sends calls over one transport. May be used wherever the transport may."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._ended = transport.signal()

    @property
    def ended(self) -> bool:
        """Whether ``end`` was called."""
        return self._ended.is_set()

    def end(self) -> None:
        """Who waits for the broker gives up now."""
        self._ended.set()

    async def pause(self, pause_s: float) -> bool:
        """Waits ``pause_s`` seconds, or until the end; returns whether that has come."""
        return await self._ended.wait(pause_s)

    async def once(self, call: Call[T]) -> T:
        """What the replies to ``call`` mean.

        Raises:
            redis.RedisError: a driver's error.
        """
        try:
            replies = await self.transport.execute(call.commands, waits=call.waits)
        except redis.exceptions.NoScriptError:  # a broker that is new, was restarted, or took over
            if call.script is None:
                raise
            await self.transport.execute([("SCRIPT LOAD", call.script.source)])
            replies = await self.transport.execute(call.commands)
        return call.read(replies)

    async def ask(self, call: Call[T], patience_s: float) -> T:
        """As ``once``, and again for ``patience_s`` seconds while it may yet succeed."""
        return await self.patiently(lambda: self.once(call), patience_s)

    async def patiently(self, ask: Callable[[], Awaitable[T]], patience_s: float) -> T:
        """``ask()``, and again for ``patience_s`` seconds while it may yet succeed; then its own error is raised."""
        give_up_at = time.monotonic() + patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await ask()
            except redis.RedisError as error:
                if not _may_pass(error) or time.monotonic() + pause_s > give_up_at or await self.pause(pause_s):
                    raise
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _may_pass(error: redis.RedisError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, TRANSIENT_ERRORS) or any(f"{code} " in str(error) for code in TRANSIENT_CODES)
