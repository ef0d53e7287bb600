"""What only AsyncClient can do; all else it shares with Client, tests included."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from brokers import client_of
from workers import WorkerProcess, a_worker

from promptmill import AsyncClient, GenerationResult, ResultTimeoutError
from promptmill.asynchronous import MAX_ROUND_TRIPS
from promptmill.embedded import EmbeddedBroker

#: A minute, at the timed worker's 50 words a second.
LONG = "word " * 3000


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at once."""
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log") as process:
        yield process


@pytest.fixture(scope="module")
def timed_worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "timed" at 50 words a second, 8 prompts at once."""
    options = ("--served-name", "timed", "--echo-tokens-per-s", "50", "--max-in-flight", "8", "--beat-s", "0.5")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("timed") / "log", *options) as process:
        yield process


def run(broker_url: str, work: Callable[[AsyncClient], Coroutine[Any, Any, None]], model: str = "echo") -> None:
    """Runs a test on a loop of its own, with a client."""

    async def with_client() -> None:
        async with AsyncClient(broker_url, model=model) as client:
            await work(client)

    asyncio.run(with_client())


async def becomes(expected: Any, ask: Callable[[], Awaitable[Any]]) -> None:
    """Asks until the answer is ``expected``."""
    async with asyncio.timeout(15):
        while await ask() != expected:
            await asyncio.sleep(0.02)


async def running(client: AsyncClient) -> int:
    """How many prompts run."""
    return sum(worker.running for worker in (await client.fleet()).workers if worker.served_name == "timed")


def test_giving_up_a_generate_or_a_stream_cancels_it_and_giving_up_a_result_does_not(
    timed_worker: WorkerProcess, broker_url: str
) -> None:
    async def work(client: AsyncClient) -> None:
        waiting = asyncio.create_task(client.generate(LONG, max_tokens=3000))
        await becomes(1, lambda: running(client))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await becomes(0, lambda: running(client))
        async with aclosing(client.stream(LONG, max_tokens=3000)) as deltas:
            assert (await anext(deltas)).startswith("word")
            await becomes(1, lambda: running(client))
        await becomes(0, lambda: running(client))
        task = await client.submit("word " * 200)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await task.result()
        assert (await task.result()).usage.completion_tokens == 200

    run(broker_url, work, "timed")


def test_two_thousand_at_once_need_few_connections(worker: WorkerProcess, broker_url: str) -> None:
    async def work(client: AsyncClient) -> None:
        with client_of(broker_url) as broker:
            before = broker.info("clients")["connected_clients"]
            answering = asyncio.gather(*(client.generate(f"prompt {number}") for number in range(2000)))
            most = 0
            while not answering.done():
                await asyncio.sleep(0.05)
                most = max(most, broker.info("clients")["connected_clients"] - before)
            assert [result.text for result in await answering] == [f"prompt {number}" for number in range(2000)]
            assert 1 < most < 2 * MAX_ROUND_TRIPS  # the worker has some, too

    run(broker_url, work)


def test_whoever_is_cancelled_the_others_get_their_own_answers(worker: WorkerProcess, broker_url: str) -> None:
    chance = random.Random(6)

    async def work(client: AsyncClient) -> None:
        async def one(number: int) -> GenerationResult:
            task = await client.submit(f"prompt {number}")
            await task.status()
            return await task.result()

        tasks = [asyncio.create_task(one(number)) for number in range(600)]
        victims = set(chance.sample(range(600), 300))
        for number in victims:
            await asyncio.sleep(chance.choice((0, 0, 0.001)))
            tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if isinstance(result, GenerationResult):
                assert result.text == f"prompt {number}"
            else:
                assert number in victims
                assert isinstance(result, asyncio.CancelledError)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 30

    run(broker_url, work)


def test_the_loop_goes_on_while_all_verbs_wait(timed_worker: WorkerProcess, broker_url: str) -> None:
    async def work(client: AsyncClient) -> None:
        ticks = 0
        prompt = ("word " * 200).strip()

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async def stream() -> str:
            return "".join([delta async for delta in client.stream(prompt)])

        async def map_all() -> list[str]:
            return [result.text async for result in client.map([prompt] * 3)]

        ticking = asyncio.create_task(tick())
        text, streamed, mapped = await asyncio.gather(client.generate(prompt), stream(), map_all())
        ticking.cancel()
        assert {text.text, streamed, *mapped} == {prompt}
        assert ticks > 20  # of four seconds' four hundred: a loop that is blocked makes none

    run(broker_url, work, "timed")


def test_a_map_over_an_asynchronous_iterable_reads_no_more_than_its_window_and_cancels_when_left(
    timed_worker: WorkerProcess, broker_url: str
) -> None:
    async def work(client: AsyncClient) -> None:
        read = 0

        async def prompts() -> AsyncGenerator[str, None]:
            nonlocal read
            while True:
                read += 1
                await asyncio.sleep(0)
                yield "one word" if read == 1 else LONG

        async with aclosing(client.map(prompts(), max_in_flight=6, chunk_size=2, max_tokens=3000)) as results:
            async for result in results:
                assert result.text == "one word"
                break
        assert read <= 8
        await becomes(0, lambda: running(client))

    run(broker_url, work, "timed")


def test_leaving_the_client_ends_what_waits(timed_worker: WorkerProcess, broker_url: str) -> None:
    async def work() -> None:
        async with AsyncClient(broker_url, model="timed") as client:
            task = await client.submit(LONG, max_tokens=3000)
            waiting = asyncio.create_task(task.result())
            await asyncio.sleep(0.1)
        with pytest.raises(ResultTimeoutError, match="closed"):
            await waiting
        async with AsyncClient(broker_url) as client:
            assert await client.task(task.id).cancel()

    asyncio.run(work())
