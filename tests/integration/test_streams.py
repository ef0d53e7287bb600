"""Streams from a worker to their readers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from brokers import client_of
from workers import WorkerProcess, a_worker, wait_until

from promptmill import (
    Client,
    Delta,
    EngineError,
    InvalidRequestError,
    ResultNotFoundError,
    ResultTimeoutError,
    TaskCancelledError,
    TaskExpiredError,
    TaskStatus,
)
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names

pytestmark = pytest.mark.usefixtures("each_client")

NAMES = Names("promptmill:")

TEN = " ".join(f"word{number}" for number in range(10))
#: Three seconds, at the worker's 50 words a second.
THREE_SECONDS = " ".join(f"word{number}" for number in range(150))
#: And a minute.
LONG = "word " * 3000


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    options = ("--echo-tokens-per-s", "50", "--beat-s", "0.5", "--max-in-flight", "64")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", *options) as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo") as client:
        yield client


def joined(deltas: Iterable[Delta], choice: int = 0) -> str:
    """The text of one choice."""
    return "".join(delta for delta in deltas if delta.choice == choice)


def test_a_text_comes_in_pieces_while_it_is_made(client: Client) -> None:
    deltas = []
    task = client.submit(THREE_SECONDS, stream=True)
    for delta in task.stream():
        if not deltas:
            assert task.status() is TaskStatus.RUNNING
        deltas.append(delta)
    assert joined(deltas) == THREE_SECONDS == task.result(timeout_s=9).text
    assert len(deltas) > 3
    assert not any(delta.restarted for delta in deltas)


def test_choices_and_stop_strings_stream_as_they_are_answered(client: Client) -> None:
    task = client.submit(TEN, stream=True, n=2, stop="d7", temperature=0)
    deltas = list(task.stream())
    texts = [choice.text for choice in task.result(timeout_s=9).choices]
    assert [joined(deltas, choice) for choice in (0, 1)] == texts
    assert texts[0].endswith("word6 wor")


def test_another_process_reads_a_stream_from_its_start_and_again_when_it_is_over(
    client: Client, broker_url: str
) -> None:
    task = client.submit(THREE_SECONDS, stream=True)
    next(task.stream())
    program = f"""
from promptmill import Client
with Client({broker_url!r}) as client:
    for _ in range(2):
        print(list(client.task({task.id!r}).stream()))
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for line in other.stdout.splitlines():
        assert len(pieces := eval(line)) > 3
        assert "".join(pieces) == THREE_SECONDS


def test_a_reader_that_comes_late_may_begin_with_what_is_new(client: Client) -> None:
    task = client.submit(THREE_SECONDS, stream=True)
    early = iter(task.stream())
    seen = [next(early) for _ in range(3)]
    new = joined(task.stream(from_start=False))
    assert 0 < len(new) < len(THREE_SECONDS)
    assert THREE_SECONDS.endswith(new)
    assert joined(seen) + joined(early) == THREE_SECONDS
    assert list(task.stream(from_start=False)) == []


def test_once_the_stream_has_gone_the_whole_text_comes_at_once(client: Client, broker_url: str) -> None:
    task = client.submit("one two", stream=True)
    task.result(timeout_s=9)
    with client_of(broker_url) as broker, Client(broker_url) as another:
        wait_until(lambda: broker.delete(NAMES.stream(task.id, 0)), "there was a stream")
        assert list(task.stream()) == list(another.task(task.id).stream()) == ["one two"]


def test_a_task_that_is_not_streamed_gives_its_whole_text(client: Client, broker_url: str) -> None:
    with Client(broker_url) as another, client_of(broker_url) as broker:
        task = client.submit("one two three")
        assert list(another.task(task.id).stream()) == list(task.stream()) == ["one two three"]
        assert not broker.exists(NAMES.stream(task.id, 0))


def test_leaving_client_stream_early_cancels_and_leaving_task_stream_does_not(client: Client) -> None:
    task = client.submit(TEN, stream=True)
    for _ in task.stream():
        break
    for delta in client.stream(LONG, max_tokens=3000):
        assert delta.startswith("word")
        break
    assert task.result(timeout_s=9).text == TEN
    wait_until(lambda: [record.running for record in client.fleet().workers] == [0], "nothing runs any more", 30)


def test_a_stream_ends_in_the_tasks_own_error_after_what_was_generated(client: Client) -> None:
    task = client.submit(LONG, stream=True, max_tokens=3000)
    stream = task.stream()
    assert next(stream).startswith("word")
    task.cancel()
    started_at = time.monotonic()
    with pytest.raises(TaskCancelledError, match=task.id):
        list(stream)
    assert time.monotonic() - started_at < 5
    expiring = client.stream(LONG, max_tokens=3000, timeout_s=4)
    assert next(expiring).startswith("word")
    with pytest.raises(TaskExpiredError) as expired:
        list(expiring)
    assert expired.value.partial_text.startswith("word word")
    with pytest.raises(EngineError):
        list(client.stream("promptmill-fault:error"))


def test_what_is_wrong_is_said_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="temperature"):
        client.stream("a", temperature=9)
    with pytest.raises(InvalidRequestError, match="'stream'"):
        client.map(["a"], stream=True)
    with pytest.raises(ResultNotFoundError, match="nonsense"):
        list(client.task("nonsense").stream())


@pytest.mark.parametrize("by_id", [False, True])
def test_closing_a_client_ends_the_reading_of_its_threads(broker_url: str, worker: WorkerProcess, by_id: bool) -> None:
    with Client(broker_url, model="echo") as client, ThreadPoolExecutor(1) as pool:
        task = client.submit("nobody's", model="nobody", stream=True)
        with Client(broker_url) as another:
            reading = pool.submit(list, (another.task(task.id) if by_id else task).stream())
            time.sleep(0.3)
            (another if by_id else client).close()
            with pytest.raises(ResultTimeoutError, match="the client was closed"):
                reading.result(timeout=5)


def test_streams_that_nobody_reads_cost_the_worker_nothing_and_are_gone_by_themselves(
    client: Client, broker_url: str
) -> None:
    tasks = [client.submit(TEN, stream=True, n=2) for _ in range(60)]
    with client_of(broker_url) as broker:
        for task in tasks:
            next(task.stream())  # and never again
        assert [task.result(timeout_s=20).text for task in tasks] == [TEN] * 60
        for task in tasks:
            assert 0 < broker.ttl(NAMES.stream(task.id, 0)) <= 600
            assert broker.xlen(NAMES.stream(task.id, 0)) <= 21
