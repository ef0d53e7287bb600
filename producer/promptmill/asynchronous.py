"""Running the library's core on asyncio's loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Self

from redis.asyncio import Redis

from promptmill.broker import connect_async
from promptmill.settings import Settings
from promptmill.transport import Command, Signal, Transport

__all__ = ["AsyncTransport"]

#: The most round trips at once, and so about the most connections; those that wait in the broker come on top.
MAX_ROUND_TRIPS = 64


class AsyncTransport(Transport):
    """See ``Transport``. Belongs to the event loop on which it is first used.

    Args:
        client: redis-py's client for asyncio (not one that decodes responses).
    """

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._turns = asyncio.Semaphore(MAX_ROUND_TRIPS)

    @classmethod
    def open(cls, settings: Settings, socket_timeout: float) -> Self:
        """One of its own, to the broker of ``settings``, on which a silence of ``socket_timeout`` s is a failure."""
        return cls(connect_async(settings, socket_timeout=socket_timeout))

    async def execute(self, commands: Sequence[Command], *, waits: bool = False) -> list[Any]:
        """See ``Transport.execute``."""
        turn: AbstractAsyncContextManager[Any] = nullcontext() if waits else self._turns
        async with turn:
            if len(commands) == 1:
                return [await self._client.execute_command(*commands[0])]
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute()
                return replies

    def signal(self) -> Signal:
        """See ``Transport.signal``."""
        return _LoopSignal()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> _LoopJob:
        """See ``Transport.spawn``: as a task of the loop."""
        return _LoopJob(name, work)

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._client.aclose()


class _LoopSignal:
    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.is_set, self.set, self.clear = self._event.is_set, self._event.set, self._event.clear

    async def wait(self, timeout_s: float | None = None) -> bool:
        if timeout_s is not None and timeout_s <= 0:
            return self._event.is_set()
        try:
            return await asyncio.wait_for(self._event.wait(), None if timeout_s == math.inf else timeout_s)
        except TimeoutError:
            return False


class _LoopJob:
    def __init__(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name=f"promptmill {name}")

    async def join(self, timeout_s: float) -> None:
        await asyncio.wait({self._task}, timeout=timeout_s)
