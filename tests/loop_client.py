"""AsyncClient with Client's interface, so that both pass the same tests: a thread runs its event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterator
from typing import Any, Self, TypeVar

from promptmill import AsyncClient, AsyncTask
from promptmill.delta import Delta
from promptmill.fleet import Fleet
from promptmill.protocol import GenerationResult
from promptmill.settings import ClientSettings
from promptmill.task import TaskStatus

__all__ = ["LoopClient"]

T = TypeVar("T")


class Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which runs on the loop; once that has ended, on one of its own."""
        with self._lock:  # what the loop is given while it stops would never run
            future = None if self._stopping else asyncio.run_coroutine_threadsafe(work, self.loop)
        return asyncio.run(work) if future is None else future.result()

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """``items``, each made on the loop."""

        async def step() -> T:
            return await anext(items)

        async def end() -> None:
            await items.aclose()

        try:
            while True:
                try:
                    item = self.run(step())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.run(end())

    async def _others(self) -> set[asyncio.Task[Any]]:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return (await asyncio.wait(others, timeout=2))[1] if others else set()

    def close(self) -> None:
        """Lets all that still runs on the loop come to its end, and stops it."""
        self.run(self._others())
        with self._lock:
            self._stopping = True
        left = asyncio.run_coroutine_threadsafe(self._others(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert not left, "something goes on after the client was closed"


class LoopTask:
    """AsyncTask with Task's interface."""

    def __init__(self, loop: Loop, task: AsyncTask) -> None:
        self._loop = loop
        self._core = task
        self.id = task.id

    def status(self) -> TaskStatus:
        return self._loop.run(self._core.status())

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        return self._loop.run(self._core.result(timeout_s))

    def stream(self, from_start: bool = True) -> Iterator[Delta]:
        return self._loop.iterate(self._core.stream(from_start))

    def cancel(self) -> bool:
        return self._loop.run(self._core.cancel())


class LoopClient:
    """AsyncClient with Client's interface."""

    def __init__(self, broker_url: str | None = None, **options: Any) -> None:
        self._client = AsyncClient(broker_url, **options)
        self._loop = Loop()
        self._session = self._client._session
        self.settings: ClientSettings = self._client.settings

    def generate(self, *arguments: Any, **options: Any) -> GenerationResult:
        return self._loop.run(self._client.generate(*arguments, **options))

    def submit(self, *arguments: Any, **options: Any) -> LoopTask:
        return LoopTask(self._loop, self._loop.run(self._client.submit(*arguments, **options)))

    def stream(self, *arguments: Any, **options: Any) -> Iterator[Delta]:
        return self._loop.iterate(self._client.stream(*arguments, **options))

    def map(self, prompts: Any, *arguments: Any, **options: Any) -> Iterator[GenerationResult]:
        return self._loop.iterate(self._client.map(_asynchronous(prompts), *arguments, **options))

    def task(self, task_id: str) -> LoopTask:
        return LoopTask(self._loop, self._client.task(task_id))

    def fleet(self) -> Fleet:
        return self._loop.run(self._client.fleet())

    def close(self) -> None:
        if not self._loop.loop.is_closed():
            self._loop.run(self._client.close())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _asynchronous(prompts: Any) -> AsyncIterable[Any]:
    """The same prompts, of a kind that only AsyncClient takes, unless they are no iterable at all."""
    if isinstance(prompts, str) or not hasattr(prompts, "__next__"):
        return prompts

    async def each() -> AsyncGenerator[Any, None]:
        for prompt in prompts:
            yield prompt

    return each()
