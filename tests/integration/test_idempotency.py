"""Submitting twice under one key: one task, one run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from brokers import client_of
from workers import a_worker, wait_until

from promptmill import (
    AsyncClient,
    Client,
    EngineError,
    InvalidRequestError,
    PromptTooLongError,
    TaskCancelledError,
    TaskExpiredError,
    TaskStatus,
    replies,
)
from promptmill.embedded import EmbeddedBroker

EACH_CLIENT = True

TEN = " ".join(f"word{number}" for number in range(10))
#: A second, at the worker's 50 words a second.
LONG = " ".join(f"word{number}" for number in range(50))
KEY = "hidden key"


@pytest.fixture(scope="module", params=["embedded_broker", "debian_redis"])
def served_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a broker with a worker; one kind after the other."""
    broker: EmbeddedBroker = request.getfixturevalue(request.param)
    url = broker.tcp_url or broker.url
    options = ("--echo-tokens-per-s", "50", "--beat-s", "0.5", "--max-in-flight", "64", "--max-model-len", "1000")
    with a_worker(url, tmp_path_factory.mktemp("echo") / "log", *options):
        yield url


@pytest.fixture
def url(served_url: str) -> str:
    """The same, emptied."""
    with client_of(served_url) as broker:
        broker.flushall()
    return served_url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, model="echo") as client:
        yield client


def records(url: str) -> int:
    """How many records there are or were, each of one prompt."""
    with client_of(url) as broker:
        kinds = ("record", "answers")
        return len({key.rpartition(b":")[2] for kind in kinds for key in broker.scan_iter(f"promptmill:{kind}:*")})


def test_the_same_key_is_the_same_task_from_everywhere_and_its_result_comes_without_a_run(
    client: Client, url: str
) -> None:
    task = client.submit(TEN, idempotency_key=KEY)
    again = client.submit(TEN, idempotency_key=KEY)
    with Client(url, model="echo") as other:
        elsewhere = other.submit(TEN, idempotency_key=KEY, priority="low", timeout_s=5, stream=True)
        assert task.id == again.id == elsewhere.id
        results = [each.result(timeout_s=20) for each in (task, again, elsewhere)]
        results += [other.generate(TEN, idempotency_key=KEY), client.generate(TEN, idempotency_key=KEY)]
    assert results == [results[0]] * 5
    assert (results[0].id, results[0].text, results[0].attempts) == (task.id, TEN, 1)
    assert records(url) == 1


def test_twenty_threads_of_two_clients_at_once_make_one_task(client: Client, url: str) -> None:
    with Client(url, model="echo") as other, ThreadPoolExecutor(20) as pool:
        for key in ("first", "second", "third"):
            made = [pool.submit((client, other)[n % 2].submit, LONG, idempotency_key=key) for n in range(20)]
            tasks = [each.result() for each in made]
            assert len({task.id for task in tasks}) == 1
            answers = pool.map(lambda task: task.result(timeout_s=20), tasks)
            assert {(answer.text, answer.attempts) for answer in answers} == {(LONG, 1)}
    assert records(url) == 3


def test_another_request_under_the_same_key_is_refused_and_nothing_of_it_is_shown(client: Client, url: str) -> None:
    task = client.submit("hidden prompt", idempotency_key=KEY)
    for _ in range(2):
        for prompt, options in [("another", {}), ("hidden prompt", {"seed": 1}), ("hidden prompt", {"model": "other"})]:
            with pytest.raises(InvalidRequestError, match="idempotency_key: it belongs to another request") as caught:
                client.submit(prompt, idempotency_key=KEY, **options)
            assert "hidden" not in str(caught.value)
            assert task.id not in str(caught.value)
        assert task.result(timeout_s=20).text == "hidden prompt"
    assert records(url) == 1
    assert client.submit("another", idempotency_key="another").id != task.id
    with pytest.raises(InvalidRequestError, match="idempotency_key: 0 characters"):
        client.generate("a", idempotency_key="")


def test_neither_the_key_nor_a_name_for_equal_prompts_is_in_the_broker(client: Client, url: str) -> None:
    for key in (KEY, f"{KEY} 2"):
        client.generate("equal prompts", idempotency_key=key)
    with client_of(url) as broker:
        keys = list(broker.scan_iter("promptmill:key:*"))
        held = [broker.hgetall(key) for key in keys]
        assert len({fields[b"digest"] for fields in held}) == len(keys) == 2
        assert b"hidden" not in b" ".join([*keys, *(value for fields in held for value in fields.values())])


def test_a_task_that_failed_was_cancelled_or_expired_frees_its_key(client: Client, url: str) -> None:
    def submit(prompt: str = TEN, **options: Any) -> Any:
        return client.submit(prompt, idempotency_key=KEY, **options)

    tasks = [submit("word " * 2000)]
    with pytest.raises(PromptTooLongError):
        tasks[-1].result(timeout_s=20)
    tasks.append(submit("promptmill-fault:error"))
    with pytest.raises(EngineError):
        tasks[-1].result(timeout_s=20)
    tasks.append(submit(model="unserved"))
    assert submit(model="unserved").cancel()
    with pytest.raises(TaskCancelledError):
        tasks[-1].result(timeout_s=20)
    tasks.append(submit(model="unserved", timeout_s=0.1))
    with pytest.raises(TaskExpiredError):
        tasks[-1].result(timeout_s=20)
    tasks.append(submit())
    assert tasks[-1].result(timeout_s=20).text == TEN
    assert submit().id == tasks[-1].id
    assert len({task.id for task in tasks}) == records(url) == 5


def test_when_the_result_is_gone_so_is_the_key(url: str) -> None:
    with Client(url, model="echo", result_ttl_s=1) as client, client_of(url) as broker:
        result = client.generate("short-lived", idempotency_key=KEY)
        wait_until(lambda: not broker.exists(f"promptmill:answers:{result.id}"), "its time is over")
    with Client(url, model="echo") as client:
        again = client.generate("short-lived", idempotency_key=KEY)
        assert again.id != result.id
        assert again.text == result.text
        assert client.submit("short-lived", idempotency_key=KEY, timeout_s=1).id == again.id


def test_a_stream_of_the_same_key_is_the_same_text_from_its_start(client: Client, url: str) -> None:
    first = client.stream(LONG, idempotency_key=KEY)
    head = [next(first) for _ in range(3)]
    assert "".join(client.stream(LONG, idempotency_key=KEY)) == LONG
    with Client(url, model="echo") as other:
        assert "".join(other.stream(LONG, idempotency_key=KEY)) == LONG
        assert other.generate(LONG, idempotency_key=KEY).attempts == 1
    assert "".join([*head, *first]) == LONG
    assert records(url) == 1


def test_a_stream_of_a_task_that_is_not_streamed_brings_its_text(client: Client, url: str) -> None:
    task = client.submit(TEN, idempotency_key=KEY)
    assert "".join(client.stream(TEN, idempotency_key=KEY)) == task.result().text == TEN
    assert records(url) == 1


def test_leaving_a_stream_cancels_no_task_with_a_key(client: Client, url: str) -> None:
    left = client.stream(LONG, idempotency_key=KEY)
    next(left)
    left.close()
    again = client.submit(LONG, idempotency_key=KEY, stream=True)
    assert again.status() in (TaskStatus.RUNNING, TaskStatus.SUCCEEDED)
    assert ("".join(again.stream()), again.result().attempts) == (LONG, 1)
    assert records(url) == 1


@pytest.mark.threads
def test_a_generate_that_is_given_up_and_asked_again_goes_on_where_it_was(url: str) -> None:
    async def work() -> None:
        async with AsyncClient(url, model="echo") as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.generate(LONG, idempotency_key=KEY)
            result = await client.generate(LONG, idempotency_key=KEY)
            assert (result.text, result.attempts) == (LONG, 1)

    asyncio.run(work())
    assert records(url) == 1


def test_a_broker_that_forgot_a_task_and_gave_its_key_away_answers_both(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in (LONG, TEN):  # the same request, and another
        monkeypatch.setattr(replies, "CHECK_AFTER_S", 600.0)
        task = client.submit(LONG, idempotency_key=KEY, model="unserved")
        with client_of(url) as broker, Client(url) as other:
            broker.flushall()
            given = other.submit(prompt, idempotency_key=KEY, model="unserved")
            assert given.id != task.id
            monkeypatch.setattr(replies, "CHECK_AFTER_S", 1.0)
            wait_until(lambda task=task: client.task(task.id).status() is TaskStatus.QUEUED, "it is there again")
            assert records(url) == 2
            assert other.submit(prompt, idempotency_key=KEY, model="unserved").id == given.id
            assert task.cancel()
            assert given.cancel()
