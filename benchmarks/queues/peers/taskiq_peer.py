"""taskiq: one process on an event loop, taskiq-redis's list; tasks are sent and answers fetched side by side."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from peer_round import BROKER, PROMPT, SLOTS, main
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

T = TypeVar("T")

#: Calls that wait for the broker at once, in the client.
AT_ONCE = 50

#: How often one that waits for its answer asks for it, in seconds.
CHECK_S = 0.005

backend: RedisAsyncResultBackend[str] = RedisAsyncResultBackend(
    BROKER, result_ex_time=3600, keep_results=False, max_connection_pool_size=AT_ONCE
)
broker = ListQueueBroker(BROKER, max_connection_pool_size=AT_ONCE).with_result_backend(backend)


@broker.task(task_name="echo")  # type: ignore[untyped-decorator]
async def echo(prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """Its own command line: one process."""
    options = ["--workers", "1", "--max-async-tasks", str(SLOTS), "--log-level", "ERROR"]
    os.execv(sys.executable, [sys.executable, "-m", "taskiq", "worker", *options, "taskiq_peer:broker"])


async def _run(tasks: int, submitted: Callable[[], None]) -> list[str]:
    handles = await _together([partial(echo.kiq, PROMPT)] * tasks)
    submitted()
    results = await _together(partial(handle.wait_result, check_interval=CHECK_S) for handle in handles)
    return [result.return_value for result in results]


async def _together(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    room = asyncio.Semaphore(AT_ONCE)

    async def within(call: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await call()

    return await asyncio.gather(*(within(call) for call in calls))


def run(runner: asyncio.Runner) -> Callable[[int, Callable[[], None]], Any]:
    """There is no bulk submission."""
    return lambda tasks, submitted: runner.run(_run(tasks, submitted))


if __name__ == "__main__":
    with asyncio.Runner() as loop:
        main(worker, run(loop))
