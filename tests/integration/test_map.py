from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import client_of, free_port
from workers import WorkerProcess, a_worker, wait_until

from promptmill import (
    BrokerUnavailableError,
    Client,
    EngineError,
    InvalidRequestError,
    MapProgress,
    PromptTooLongError,
    ResultTimeoutError,
    TaskExpiredError,
)
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names
from promptmill.task import parse_task_id
from promptmill_worker.echo import FAULT_ERROR

pytestmark = pytest.mark.usefixtures("each_client")

CONTEXT_TOKENS = 1000
#: Each of its words takes 10 ms.
TEN_SECONDS = "word " * 999


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at once."""
    options = ("--max-model-len", str(CONTEXT_TOKENS))
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", *options) as process:
        yield process


@pytest.fixture(scope="module")
def timed_worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "timed" at 100 words a second, 8 prompts at once."""
    options = ("--served-name", "timed", "--echo-tokens-per-s", "100", "--max-in-flight", "8", "--beat-s", "0.5")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("timed") / "log", *options) as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo") as client:
        yield client


@pytest.fixture
def timed(timed_worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="timed") as client:
        yield client


def numbered(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


class Counted:
    """An iterable that knows how much of it was read."""

    def __init__(self, items: Iterable[str]) -> None:
        self.read = 0
        self._items = iter(items)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = next(self._items)
        self.read += 1
        return item


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("count", "max_in_flight", "chunk_size"),
    [
        (0, 1024, 64),
        (1, 1024, 64),
        (64, 64, 64),
        (200, 64, 64),
        (1000, 100, 64),
        (50, 1, 1),
        (50, 3, 64),
        (3000, 1024, 64),
    ],
)
def test_every_prompt_is_answered_once_whatever_the_window(
    client: Client, ordered: bool, count: int, max_in_flight: int, chunk_size: int
) -> None:
    window: dict[str, Any] = {"ordered": ordered, "max_in_flight": max_in_flight, "chunk_size": chunk_size}
    results = list(client.map(numbered(count), **window))
    assert sorted(result.index for result in results) == list(range(count))
    assert all(result.text == f"prompt {result.index}" for result in results)
    if ordered:
        assert [result.index for result in results] == list(range(count))
    assert len({result.id for result in results}) == count


def test_results_come_as_they_finish_or_in_order(timed: Client) -> None:
    prompts = ["word " * 100, "word", "word " * 50, "word"]
    assert [result.index for result in timed.map(prompts)] == [0, 1, 2, 3]
    as_finished = [result.index for result in timed.map(prompts, ordered=False)]
    assert as_finished[2:] == [2, 0]


def test_chats_and_prompts_can_be_mixed_and_share_their_parameters(client: Client) -> None:
    prompts = ["a b c", [{"role": "user", "content": "d e f"}]]
    assert [result.text for result in client.map(prompts, max_tokens=2)] == ["a b", "d e"]


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_is_read_ahead_than_the_window_allows(client: Client, ordered: bool) -> None:
    prompts = Counted(numbered(600))
    for yielded, _ in enumerate(client.map(prompts, ordered=ordered, max_in_flight=100, chunk_size=16), start=1):
        time.sleep(0.001)
        # The one in our hands has been yielded.
        assert prompts.read - (yielded - 1) <= 100
    assert yielded == 600


def test_a_slow_first_prompt_holds_the_reading_up_instead_of_piling_up_results(timed: Client) -> None:
    prompts = Counted(itertools.chain(["word " * 200], numbered(100)))
    results = timed.map(prompts, max_in_flight=16, chunk_size=4)
    assert next(results).index == 0
    assert prompts.read <= 16
    assert len(list(results)) == 100


def test_an_endless_iterable_is_read_as_its_results_are_taken(client: Client) -> None:
    endless = (f"prompt {number}" for number in itertools.count())
    results = client.map(endless, max_in_flight=50)
    assert [next(results).index for _ in range(300)] == list(range(300))
    results.close()


def test_prompts_that_come_slowly_are_sent_as_they_come(client: Client) -> None:
    answered: list[int] = []

    def slow() -> Iterator[str]:
        for number in range(1000):
            if len(answered) == 3:
                return
            time.sleep(0.11)
            yield f"prompt {number}"

    for result in client.map(slow()):
        answered.append(result.index)  # noqa: PERF401  # the iterable looks at it meanwhile
    assert 3 <= len(answered) < 100
    assert answered == list(range(len(answered)))


def test_a_slow_caller_gets_everything(client: Client) -> None:
    seen = 0
    for _ in client.map(numbered(300), max_in_flight=64):
        seen += 1
        time.sleep(0.002)
    assert seen == 300


def leave(results: Iterator[Any]) -> None:
    next(results)
    results.close()


def fail(results: Iterator[Any]) -> None:
    for _ in results:
        raise ZeroDivisionError


@pytest.mark.parametrize("end", [leave, fail])
def test_ending_early_cancels_what_is_left(
    timed: Client, broker_url: str, end: Callable[[Iterator[Any]], None]
) -> None:
    broker = client_of(broker_url)
    results = timed.map(["word", *[TEN_SECONDS] * 100], max_in_flight=64, chunk_size=16)
    try:
        end(results)
    except ZeroDivisionError:
        del results
    assert not list(broker.scan_iter("promptmill:record:*"))
    assert not list(broker.scan_iter("promptmill:answers:*"))
    # The worker lets go at its next beat: 8 prompts of ten seconds each would hold it up much longer.
    started_at = time.monotonic()
    assert timed.generate("next").text == "next"
    assert time.monotonic() - started_at < 5


def test_a_map_that_is_not_iterated_sends_nothing(client: Client, broker_url: str) -> None:
    prompts = Counted(numbered(10))
    client.map(prompts)
    assert prompts.read == 0
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ResultTimeoutError("of another task"), BrokerUnavailableError("")]
)
def test_an_error_in_the_callers_iterable_is_the_callers_and_cancels_what_is_left(
    client: Client, broker_url: str, error: Exception
) -> None:
    def broken() -> Iterator[str]:
        yield from numbered(30)
        raise error

    with pytest.raises(type(error)):
        list(client.map(broken(), model="nobody", max_in_flight=64, chunk_size=8))
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


def test_a_failed_prompt_does_not_hurt_its_neighbours(client: Client) -> None:
    prompts = numbered(64)
    prompts[10], prompts[20] = FAULT_ERROR, "word " * 2000
    results = list(client.map(prompts, on_error="yield"))
    assert [result.index for result in results if result.error is not None] == [10, 20]
    assert isinstance(results[10].error, EngineError)
    assert isinstance(results[20].error, PromptTooLongError)
    assert (results[20].error.prompt_tokens, results[20].error.limit_tokens) == (2000, CONTEXT_TOKENS - 1)
    assert (results[20].text, results[20].finish_reason) == ("", None)
    assert all(result.text == f"prompt {result.index}" for result in results if result.error is None)


def test_a_failed_prompt_ends_the_run_with_its_error_after_the_results_before_it(
    client: Client, broker_url: str
) -> None:
    prompts = numbered(64)
    prompts[10] = FAULT_ERROR
    seen = []
    with pytest.raises(EngineError, match="asked to fail") as caught:  # noqa: PT012 - what came before the error counts
        for result in client.map(prompts):
            seen.append(result.index)  # noqa: PERF401
    assert seen == list(range(10))
    assert caught.value.index == 10
    assert "at index 10 of the map" in caught.value.__notes__[0]
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


@pytest.mark.parametrize(
    "wrong", ["", "\ud800", 5, None, [], [{"role": "nobody", "content": "a"}], {"role": "user"}, "x" * 2000]
)
def test_a_wrong_prompt_fails_alone_and_is_not_sent(worker: WorkerProcess, broker_url: str, wrong: Any) -> None:
    with Client(broker_url, model="echo", max_request_bytes=1000) as client:
        prompts: list[Any] = numbered(70)
        prompts[5] = prompts[66] = wrong
        results = list(client.map(prompts, on_error="yield"))
        assert [result.index for result in results if result.error is not None] == [5, 66]
        assert isinstance(results[5].error, InvalidRequestError)
        assert all(result.text == f"prompt {result.index}" for result in results if result.error is None)
        with pytest.raises(InvalidRequestError):
            list(client.map(prompts))


def test_a_million_wrong_prompts_are_no_more_than_a_window_in_memory(client: Client) -> None:
    prompts = Counted("" for _ in range(1_000_000))
    results = client.map(prompts, on_error="yield", max_in_flight=100)
    for _ in range(1000):
        assert isinstance(next(results).error, InvalidRequestError)
    assert prompts.read <= 1100
    results.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "a single prompt"}, "this is a single one"),
        ({"max_in_flight": 0}, "max_in_flight: 0"),
        ({"chunk_size": 0}, "chunk_size: 0"),
        ({"chunk_size": 5000}, "chunk_size: 5000"),
        ({"on_error": "ignore"}, "'raise' or 'yield'"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
        ({"idempotency_key": "a"}, "a key is of one prompt, and map runs many"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(client: Client, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        client.map(**{"prompts": ["a"], **arguments})


def test_the_largest_chunk_passes_and_can_be_cancelled(client: Client, broker_url: str) -> None:
    assert len(list(client.map(numbered(1024), chunk_size=1024))) == 1024
    results = client.map(numbered(2048), chunk_size=1024, max_in_flight=2048)
    next(results)
    results.close()
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


@pytest.mark.threads
def test_closing_the_client_ends_a_map_that_is_about_to_send(client: Client) -> None:
    def prompts() -> Iterator[str]:
        yield from ("prompt" for _ in range(50))
        client.close()
        yield from ("prompt" for _ in range(50))

    with pytest.raises(ResultTimeoutError, match="the client was closed"):
        list(client.map(prompts(), max_in_flight=8, chunk_size=4))


def test_closing_the_client_ends_a_map_that_waits(client: Client) -> None:
    closing = threading.Timer(0.3, client.close)
    closing.start()
    with pytest.raises(ResultTimeoutError, match="the client was closed"):
        next(client.map(["a"], model="nobody"))
    closing.join()


def test_a_map_whose_broker_is_not_there_says_so_in_time() -> None:
    started_at = time.monotonic()
    with (
        Client(f"redis://127.0.0.1:{free_port()}/0", model="echo", broker_timeout_s=1) as client,
        pytest.raises(BrokerUnavailableError, match="does not answer"),
    ):
        next(client.map(["a"]))
    assert time.monotonic() - started_at < 10


def test_a_map_that_the_broker_does_not_let_in_says_so_at_once(debian_redis: EmbeddedBroker) -> None:
    assert debian_redis.tcp_url is not None
    wrong = re.sub("//:.*@", "//:wrong@", debian_redis.tcp_url)
    started_at = time.monotonic()
    with (
        Client(wrong, model="echo", broker_timeout_s=60) as client,
        pytest.raises(BrokerUnavailableError, match="the password"),
    ):
        next(client.map(["a"]))
    assert time.monotonic() - started_at < 30


def test_two_workers_share_one_chunk(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sharing")
    options = ("--served-name", "shared", "--max-in-flight", "32", "--echo-tokens-per-s", "20")
    with (
        a_worker(broker_url, folder / "one", *options, ready=False) as one,
        a_worker(broker_url, folder / "two", *options, ready=False) as two,
        Client(broker_url, model="shared") as client,
    ):
        one.wait_until_ready()
        two.wait_until_ready()
        results = list(client.map(["word " * 80] * 64, chunk_size=64))
        by_worker = {name: sum(result.worker == name for result in results) for name in {r.worker for r in results}}
        assert len(by_worker) == 2
        assert min(by_worker.values()) >= 16
        assert {result.attempts for result in results} == {1}


def test_answers_of_a_map_are_gone_once_they_are_read(client: Client, broker_url: str) -> None:
    list(client.map(numbered(200)))
    broker = client_of(broker_url)
    wait_until(
        lambda: not list(broker.scan_iter("promptmill:answers:*")) + list(broker.scan_iter("promptmill:record:*")),
        "nothing is left",
    )


def test_a_chunk_of_large_prompts_travels_in_pieces(broker_url: str, tmp_path: Path) -> None:
    prompts = [f"{number} " + "x" * 300_000 for number in range(16)]
    with a_worker(broker_url, tmp_path / "log"), Client(broker_url, model="echo") as client:
        results = client.map(prompts, chunk_size=16, max_tokens=1)
        assert [result.text for result in results] == [str(number) for number in range(16)]
        with client_of(broker_url) as broker:
            assert not list(broker.scan_iter("promptmill:record:*"))


def test_progress_is_told_before_each_result(client: Client) -> None:
    told: list[MapProgress] = []
    prompts = ["one two", "promptmill-fault:error", "three"]
    for number, result in enumerate(client.map(prompts, on_error="yield", on_progress=told.append), start=1):
        assert (told[-1].done, len(told)) == (number, number)
        assert told[-1].failed == (number > 1)
        assert result.index == number - 1
    assert (told[-1].total, told[-1].completion_tokens, told[-1].prompt_tokens) == (3, 3, 3)
    assert 0 < told[0].elapsed_s < told[-1].elapsed_s + 60
    list(client.map(iter(prompts[:1]), on_progress=told.append))
    assert told[-1].total is None


def test_a_map_goes_by_its_priority_and_its_prompts_have_its_deadline(client: Client, broker_url: str) -> None:
    lanes: set[bytes] = set()

    def prompts() -> Iterator[str]:
        for number in range(4):
            if number == 2:  # the first chunk was entered
                with client_of(broker_url) as broker:
                    lanes.update(broker.smembers(Names("promptmill:").lanes))
            yield "waits in vain"

    results = client.map(
        prompts(), model="nobody", priority="low", timeout_s=0.5, on_error="yield", chunk_size=2, max_in_flight=4
    )
    assert {type(result.error) for result in results} == {TaskExpiredError}
    assert lanes == {b"promptmill.nobody|9"}
    with pytest.raises(InvalidRequestError, match="priority"):
        list(client.map(["a"], priority="urgent"))


def test_a_map_chooses_its_chunks_by_the_size_of_its_prompts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptmill.source.PATIENCE_S", 60.0)  # or a chunk that takes long to read is sent as it is

    def chunks(prompts: Iterable[str]) -> int:
        return len({parse_task_id(result.id)[0] for result in client.map(prompts, max_tokens=1)})

    assert chunks(f"prompt {number}" for number in range(400)) == 2
    assert chunks("word " * 990 for _ in range(400)) > 5
    assert chunks(["a"] * 400) == 2
