"""Running the library's core on threads: what it awaits blocks, and each coroutine runs to its end at once."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator, Sequence
from typing import Any, Self, TypeVar, cast

import redis

from promptmill.broker import connect
from promptmill.settings import Settings
from promptmill.transport import Command, Signal, Transport

__all__ = ["BlockingTransport", "iterate", "run"]

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    """The result of a coroutine of the core over a ``BlockingTransport``."""
    coroutine = cast("Coroutine[Any, Any, T]", work)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    coroutine.close()
    raise RuntimeError("a coroutine of the core waited for an event loop")


def iterate(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of a generator of the core over a ``BlockingTransport``; leaving the iteration closes it."""
    try:
        while True:
            try:
                item = run(anext(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(items.aclose())


class BlockingTransport(Transport):
    """See ``Transport``. Thread-safe, as redis-py's client is.

    Args:
        client: A redis-py client (not one that decodes responses).
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client
        self._closed = False

    @classmethod
    def open(cls, settings: Settings, socket_timeout: float) -> Self:
        """One of its own, to the broker of ``settings``, on which a silence of ``socket_timeout`` s is a failure."""
        return cls(connect(settings, socket_timeout=socket_timeout))

    async def execute(self, commands: Sequence[Command], *, waits: bool = False) -> list[Any]:  # noqa: ARG002
        """See ``Transport.execute``; each thread that waits has a connection of its own."""
        try:
            if len(commands) == 1:
                return [self._client.execute_command(*commands[0])]
            with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(pipe.execute())
        except Exception as error:
            if not self._closed or isinstance(error, redis.RedisError):
                raise
            # redis-py stumbles in several ways over a connection that is closed while it reads from it.
            raise redis.ConnectionError("it was closed") from error

    def signal(self) -> Signal:
        """See ``Transport.signal``."""
        return _ThreadSignal()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> _ThreadJob:
        """See ``Transport.spawn``: on a thread."""
        return _ThreadJob(name, work)

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        self._client.close()


class _ThreadSignal:
    def __init__(self) -> None:
        self._event = threading.Event()
        self.is_set, self.set, self.clear = self._event.is_set, self._event.set, self._event.clear

    async def wait(self, timeout_s: float | None = None) -> bool:
        return self._event.wait(None if timeout_s == math.inf else timeout_s)


class _ThreadJob:
    def __init__(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._thread = threading.Thread(target=run, args=(work,), name=f"promptmill {name}", daemon=True)
        self._thread.start()

    async def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
