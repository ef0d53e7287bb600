"""Each kind of bad input: a clear error, before anything is sent, and nothing lost."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import client_of, free_port
from workers import WorkerProcess, a_worker, wait_until

from promptmill import (
    BrokerUnavailableError,
    Client,
    InvalidRequestError,
    NoWorkerError,
    PromptTooLongError,
    SamplingParams,
    TaskStatus,
)
from promptmill.embedded import EmbeddedBroker

USER = {"role": "user", "content": "a"}


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo", max_request_bytes=1000) as client:
        yield client


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo", at most 100 words."""
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", "--max-model-len", "101") as process:
        yield process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a prompt or messages, and not both"),
        ({"prompt": "a", "messages": [USER]}, "give either a prompt or messages, and not both"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 5}, "prompt: Input should be a valid string"),
        ({"prompt": ["a"]}, "prompt: Input should be a valid string"),
        ({"prompt": "\udcff"}, "half of a surrogate pair"),
        ({"messages": []}, "messages hold no text"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages hold no text"),
        ({"messages": "a"}, "messages: "),
        ({"messages": USER}, "messages: "),
        ({"messages": ["a"]}, r"messages\.0: "),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\.0\.role: .*'user'"),
        ({"messages": [{"role": "user"}]}, r"messages\.0\.content is missing"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\.0\.content: "),
        ({"messages": [{**USER, "weight": 1}]}, r"messages\.0\.weight"),
        ({"prompt": "a", "no_such_parameter": 1}, "unknown parameter 'no_such_parameter'; known are .*temperature"),
        ({"prompt": "a", "max_tokens": 0}, r"max_tokens: 0 is not allowed.*range: ≥ 1 and ≤ 1000000"),
        ({"prompt": "a", "max_tokens": 1.5}, r"max_tokens: 1.5 is not allowed"),
        ({"prompt": "a", "max_tokens": "many"}, r"max_tokens: 'many' is not allowed"),
        ({"prompt": "a", "max_tokens": None}, r"max_tokens: None is not allowed"),
        ({"prompt": "a", "temperature": -0.1}, r"temperature: -0.1 is not allowed.*range: ≥ 0.0 and ≤ 2.0"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature: nan is not allowed"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature: inf is not allowed"),
        ({"prompt": "a", "top_p": 0}, r"top_p: 0 is not allowed.*range: > 0.0 and ≤ 1.0"),
        ({"prompt": "a", "top_k": -1}, r"top_k: -1 is not allowed"),
        ({"prompt": "a", "n": 129}, r"n: 129 is not allowed"),
        ({"prompt": "a", "seed": 2**63}, r"seed: 9223372036854775808 is not allowed"),
        ({"prompt": "a", "stop": ""}, "stop.*at least 1 character"),
        ({"prompt": "a", "stop": ["x"] * 65}, "stop.*at most 64 items"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "priority": "urgent"}, "priority: 'urgent' is not allowed: it is 'high', 'normal' or 'low'"),
        ({"prompt": "a", "timeout_s": 0}, r"timeout_s: 0 is not allowed \(range: > 0"),
        ({"prompt": "a", "timeout_s": float("nan")}, "timeout_s: nan is not allowed"),
        ({"prompt": "a", "timeout_s": "soon"}, "timeout_s: 'soon' is not allowed"),
        ({"prompt": "a", "model": "no such name"}, "model: 'no such name' is not a served name"),
        ({"prompt": "a", "model": "a|b"}, "is not a served name"),
        ({"prompt": "a", "model": ""}, "model: '' is not a served name"),
        ({"prompt": "a", "model": 5}, "model: 5 is not a served name"),
        ({"prompt": "x" * 1001}, r"the prompt is 1,0\d\d bytes of JSON, the limit is 1,000: .*MAX_REQUEST_BYTES"),
        ({"messages": [{"role": "user", "content": "ü" * 500}]}, r"bytes of JSON, the limit is 1,000"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_sent(
    client: Client, broker_url: str, arguments: dict[str, Any], message: str
) -> None:
    for verb in (client.submit, client.generate):
        with pytest.raises(InvalidRequestError, match=message):
            verb(**arguments)
    assert client_of(broker_url).dbsize() == 0


def test_no_message_of_an_error_quotes_the_prompt(client: Client) -> None:
    marker = "secret-marker"
    for arguments in (
        {"prompt": marker, "messages": [{"role": "user", "content": marker}]},
        {"messages": [{"role": "robot", "content": marker}]},
        {"messages": [{"role": "user", "content": [marker]}]},
        {"messages": marker},
        {"messages": [marker]},
        {"prompt": [marker]},
        {"prompt": marker * 1000},
        {"prompt": marker + "\ud800"},
        {"prompt": "a", "stop": marker * 100},
        {"prompt": "a", "stop": [[marker]]},
    ):
        with pytest.raises(InvalidRequestError) as caught:
            client.submit(**arguments)
        assert marker not in str(caught.value)
        assert caught.value.__cause__ is None


def test_parameters_as_a_plain_dictionary_are_refused_with_a_sentence(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="SamplingParams"):
        client.submit("a", params={"max_tokens": 5})


def test_two_spellings_of_one_parameter_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="max_completion_tokens"):
        client.submit("a", max_tokens=5, max_completion_tokens=6)


def test_a_prompt_beyond_the_context_is_refused_by_the_worker_with_both_numbers(
    worker: WorkerProcess, client: Client
) -> None:
    with pytest.raises(PromptTooLongError, match=r"101 words, at most 100") as caught:
        client.generate("a " * 101)
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (101, 100)
    assert client.generate("a " * 100).finish_reason == "length" or client.generate("a " * 99)


def test_a_model_that_nobody_serves_is_waited_for_with_a_warning_after_ten_seconds(
    worker: WorkerProcess, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "promptmill"):
        started_at = time.monotonic()
        tasks = [client.submit("a", model="nobody") for _ in range(3)]
        wait_until(lambda: "no worker serves 'nobody'" in caplog.text, "the warning", 60)
        assert 9 < time.monotonic() - started_at < 40
        assert "served are: echo" in caplog.text
        assert {task.status() for task in tasks} == {TaskStatus.QUEUED}
        time.sleep(1.2)  # it looks once a second
    assert caplog.text.count("no worker serves") == 1


def test_require_worker_raises_before_anything_is_sent(client: Client, broker_url: str) -> None:
    for ask in (
        lambda: client.submit("a", require_worker=True),
        lambda: client.generate("a", model="nobody", require_worker=True),
        lambda: client.map(["a"], require_worker=True),
    ):
        with pytest.raises(NoWorkerError, match="served are: none") as caught:
            ask()
        assert caught.value.model in ("echo", "nobody")
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


def test_require_worker_passes_where_the_model_is_served(worker: WorkerProcess, client: Client) -> None:
    wait_until(lambda: client.fleet().workers, "the worker has shown up again")
    assert client.generate("a", require_worker=True).text == "a"


def test_without_a_model_and_a_worker_there_is_a_sentence(broker_url: str) -> None:
    with Client(broker_url) as client, pytest.raises(NoWorkerError, match=r"start a worker, or name the model"):
        client.submit("a")


VERBS: list[Callable[[Client], Any]] = [
    lambda client: client.submit("a", model="echo"),
    lambda client: client.submit("a"),
    lambda client: client.submit("a", model="echo", require_worker=True),
    lambda client: list(client.map(["a"], model="echo")),
    lambda client: client.fleet(),
    lambda client: client.task("an-id").status(),
    lambda client: client.task("an-id").result(),
    lambda client: client.task("an-id").cancel(),
]


@pytest.mark.parametrize("verb", VERBS, ids=range(len(VERBS)))
def test_a_broker_that_is_down_is_named_in_time(verb: Callable[[Client], Any]) -> None:
    port = free_port()
    started_at = time.monotonic()
    with Client(f"redis://:hidden@127.0.0.1:{port}/0", broker_timeout_s=1) as client:
        with pytest.raises(BrokerUnavailableError, match=f"127.0.0.1:{port}") as caught:
            verb(client)
        assert "hidden" not in str(caught.value)
        assert time.monotonic() - started_at < 10


@pytest.mark.parametrize("url", ["redis://:hidden@no-such-host.invalid/0", "redis+socket:///no/such.sock"])
def test_a_broker_that_is_nowhere_is_named_in_time(url: str) -> None:
    started_at = time.monotonic()
    with Client(url, model="echo") as client, pytest.raises(BrokerUnavailableError, match=r"no.such") as caught:
        client.submit("a")
    assert "hidden" not in str(caught.value)
    assert time.monotonic() - started_at < 20


def test_a_wrong_password_is_told_at_once(any_broker_url: str) -> None:
    right = any_broker_url.split("//:")[1].split("@")[0]
    for wrong in (any_broker_url.replace(right, "hidden"), any_broker_url.replace(f":{right}@", "")):
        with Client(wrong, model="echo", broker_timeout_s=60) as client:
            started_at = time.monotonic()
            with pytest.raises(BrokerUnavailableError, match="refuses the user or the password") as caught:
                client.submit("a")
            assert time.monotonic() - started_at < 30
            assert "hidden" not in str(caught.value)
            assert right not in str(caught.value)


def test_a_prompt_that_could_not_be_sent_can_be_sent_again(broker_url: str, worker: WorkerProcess) -> None:
    broker = EmbeddedBroker(port=free_port(), appendfsync="everysec")
    assert broker.tcp_url is not None
    with Client(broker.tcp_url, model="echo", broker_timeout_s=2) as client:
        with pytest.raises(BrokerUnavailableError):
            client.submit("a")
        with broker:
            assert client.submit("a").status() is TaskStatus.QUEUED


def test_a_brief_absence_of_the_broker_is_waited_out(tmp_path: Any) -> None:
    broker = EmbeddedBroker(tmp_path / "data", appendfsync="everysec")
    broker.start()
    with Client(broker.url, model="echo", broker_timeout_s=30) as client:
        client.submit("a")
        broker.stop()
        back = threading.Timer(1, broker.start)
        back.start()
        assert client.submit("b").status() is TaskStatus.QUEUED
        back.join()
    broker.stop()


def test_parameters_that_are_made_alone_are_checked_too() -> None:
    with pytest.raises(InvalidRequestError, match="temperature"):
        SamplingParams.of(temperature=3)


def test_a_worker_with_a_wrong_password_says_so_and_ends(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    wrong = re.sub(r":[^:@]+@", ":not-the-password@", embedded_broker.url)
    with a_worker(wrong, tmp_path / "log", ready=False) as process:
        assert process.wait(30) == 1
        assert "refuses the user or the password" in process.log
        assert "s.sock" in process.log
        assert "not-the-password" not in process.log
        assert "Traceback" not in process.log
