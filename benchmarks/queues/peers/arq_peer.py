"""arq: one process on an event loop that looks for jobs a hundred times as often as by default; calls side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker
from peer_round import BROKER, PROMPT, SLOTS, main

T = TypeVar("T")

#: Calls that wait for the broker at once, in the client.
AT_ONCE = 50

#: How often the worker looks for jobs, and the client for an answer, in seconds. At arq's half a second a worker of ten
#: slots would never do more than 20 jobs a second.
POLL_S = 0.005

SETTINGS = RedisSettings.from_dsn(BROKER)


async def echo(_: dict[str, Any], prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """One process."""
    Worker([echo], redis_settings=SETTINGS, max_jobs=SLOTS, poll_delay=POLL_S, log_results=False).run()


async def _run(pool: ArqRedis, tasks: int, submitted: Callable[[], None]) -> list[str]:
    jobs = await _together([partial(pool.enqueue_job, "echo", PROMPT)] * tasks)
    submitted()
    return await _together(partial(job.result, poll_delay=POLL_S) for job in jobs)


async def _together(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    room = asyncio.Semaphore(AT_ONCE)

    async def within(call: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await call()

    return await asyncio.gather(*(within(call) for call in calls))


class _Client:
    """Its connections live as long as the event loop."""

    def __init__(self, loop: asyncio.Runner) -> None:
        self._loop = loop
        self._pool: ArqRedis | None = None

    def run(self, tasks: int, submitted: Callable[[], None]) -> list[str]:
        """There is no bulk submission."""
        self._pool = self._pool or self._loop.run(create_pool(SETTINGS))
        return self._loop.run(_run(self._pool, tasks, submitted))


if __name__ == "__main__":
    with asyncio.Runner() as loop:
        main(worker, _Client(loop).run)
