from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from brokers import client_of
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, EngineError, InvalidRequestError, PromptTooLongError, TaskCancelledError, TaskStatus
from promptmill.embedded import EmbeddedBroker
from promptmill_worker.echo import FAULT_ERROR

QUEUE = "promptmill.echo"


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at 100 words a second."""
    options = ("--max-model-len", "1000", "--echo-tokens-per-s", "100", "--beat-s", "0.5")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", *options) as process:
        yield process


@pytest.fixture
def foreign(worker: WorkerProcess, broker_url: str) -> Iterator[Celery]:
    """An application's own Celery, made as its own documentation says: the current app, with Celery's defaults."""
    before = celery.current_app._get_current_object()
    app = Celery("foreign", broker=broker_url, backend=broker_url, set_as_current=True)
    app.set_default()
    yield app
    app.close()
    before.set_current()
    before.set_default()


def call(app: Celery, *arguments: Any, **keywords: Any) -> Any:
    return app.send_task("promptmill.generate", args=arguments, kwargs=keywords, queue=QUEUE)


def signature(app: Celery, *arguments: Any, **keywords: Any) -> Any:
    return app.signature("promptmill.generate", args=arguments, kwargs=keywords, queue=QUEUE)


def test_a_call_gets_a_dictionary(foreign: Celery) -> None:
    answer = call(foreign, prompt="one two three", max_tokens=2).get(timeout=10)
    assert answer["text"] == "one two"
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert (answer["model"], answer["attempts"]) == ("echo", 1)
    assert json.loads(json.dumps(answer)) == answer


def test_a_call_over_windows_gets_them_joined_and_each(foreign: Celery) -> None:
    answer = call(foreign, "a b c", window_tokens=2).get(timeout=10)
    assert answer["text"] == "a b\nc"
    assert [choice["window"] for choice in answer["choices"]] == [[0, 2], [2, 3]]
    assert "window" not in call(foreign, "a b c").get(timeout=10)["choices"][0]


def test_the_prompt_can_be_positional_and_a_chat(foreign: Celery) -> None:
    chat = [{"role": "user", "content": "hello"}]
    assert call(foreign, "positional").get(timeout=10)["text"] == "positional"
    assert call(foreign, chat).get(timeout=10)["text"] == "hello"
    assert call(foreign, messages=chat, temperature=0).get(timeout=10)["text"] == "hello"


@pytest.mark.parametrize("prompt", ["said once", FAULT_ERROR])
def test_a_message_that_comes_again_can_not_take_the_result_away(foreign: Celery, broker_url: str, prompt: str) -> None:
    """The second worker's "it has started" may be written over the first one's result, if they meet."""

    def send() -> Any:
        return foreign.send_task(
            "promptmill.generate", kwargs={"prompt": prompt}, queue=QUEUE, task_id=f"twice {prompt}"
        )

    first = send().get(timeout=10, propagate=False)
    with client_of(broker_url) as broker:
        [key] = broker.scan_iter("celery-task-meta-twice*")
        broker.set(key, json.dumps({**json.loads(broker.get(key)), "status": "STARTED", "result": None}))
        again = send()
        wait_until(lambda: again.status in ("SUCCESS", "FAILURE"), "the result is there again")
        assert str(again.get(timeout=10, propagate=False)) == str(first)


def test_a_compressed_call_that_a_worker_puts_back_is_answered_by_another(
    foreign: Celery, broker_url: str, tmp_path: Path
) -> None:
    other = ("--served-name", "other")
    with a_worker(broker_url, tmp_path / "one", *other, "--echo-tokens-per-s", "10", "--grace-s", "0") as one:
        called = foreign.send_task("promptmill.generate", ["word " * 200], queue="promptmill.other", compression="gzip")
        wait_until(lambda: client_of(broker_url).exists("promptmill:leases"), "it runs")
        one.send(signal.SIGTERM)
        one.wait(30)
        assert "put 1 prompts" in one.log
    with a_worker(broker_url, tmp_path / "two", *other):
        assert called.get(timeout=30)["text"] == " ".join(["word"] * 200)


def test_the_answer_carries_the_callers_task_id(foreign: Celery) -> None:
    result = call(foreign, "whose")
    assert result.get(timeout=10)["id"] == result.id


def test_a_chain_hands_the_text_on(foreign: Celery) -> None:
    steps = chain(signature(foreign, prompt="a b c d", max_tokens=3), signature(foreign, max_tokens=2))
    assert steps.apply_async().get(timeout=20)["text"] == "a b"


def test_a_group_gathers_its_answers(foreign: Celery) -> None:
    calls = group(signature(foreign, prompt=f"member {number}") for number in range(20))
    answers = calls.apply_async().get(timeout=30)
    assert [answer["text"] for answer in answers] == [f"member {number}" for number in range(20)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_chord_ends_in_a_task_of_the_application(foreign: Celery) -> None:
    @foreign.task(name="foreign.join", shared=False)
    def join(answers: list[dict[str, Any]]) -> str:
        return " ".join(sorted(answer["text"] for answer in answers))

    with start_worker(foreign, loglevel="WARNING", perform_ping_check=False, pool="solo", concurrency=1):
        header = [signature(foreign, prompt=text) for text in ("b", "a", "c")]
        assert chord(header)(join.s()).get(timeout=30) == "a b c"


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((), {}, "either a prompt or messages"),
        ((), {"prompt": ""}, "the prompt is empty"),
        (("a",), {"prompt": "b"}, "and not both"),
        (("a", "b"), {}, "was given 2 arguments"),
        ((5,), {}, "prompt"),
        (({"no": "text"},), {}, "prompt"),
        ((), {"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ((), {"prompt": "a", "temperature": 9}, r"temperature: 9 is not allowed.*≤ 2"),
        ((), {"prompt": "a", "params": {}}, "unknown parameter 'params'"),
        ((), {"prompt": "a", "cls": 1}, "unknown parameter 'cls'"),
        ((), {"prompt": "a", "no_such": 1}, "unknown parameter 'no_such'"),
        ((), {"prompt": "\ud800"}, "surrogate"),
    ],
)
def test_wrong_arguments_raise_invalid_request_error_at_the_caller(
    foreign: Celery, broker_url: str, arguments: tuple[Any, ...], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(foreign, *arguments, **keywords).get(timeout=10)
    assert not list(client_of(broker_url).scan_iter("promptmill:record:*"))


def test_a_failure_keeps_its_class_and_its_values_at_the_caller(foreign: Celery) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        call(foreign, prompt="word " * 2000).get(timeout=10)
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (2000, 999)
    with pytest.raises(EngineError):
        call(foreign, prompt=FAULT_ERROR).get(timeout=10)


def test_any_text_passes_also_what_looks_like_our_own_marks(foreign: Celery) -> None:
    text = "\ue000delivery\ue000 @id@ @tag@ %1 \\u0041 😀"
    assert call(foreign, prompt=text).get(timeout=10)["text"] == text


def test_a_calls_record_is_gone_when_its_caller_has_the_answer(foreign: Celery, broker_url: str) -> None:
    call(foreign, "short").get(timeout=10)
    broker = client_of(broker_url)
    wait_until(lambda: not list(broker.scan_iter("promptmill:record:*")), "the record is gone")
    assert broker.zcard("promptmill:leases") == broker.zcard("promptmill:deadlines") == 0


def test_a_client_sees_and_cancels_a_call_by_its_celery_id(foreign: Celery, broker_url: str) -> None:
    result = call(foreign, prompt="word " * 900)
    with Client(broker_url) as client:
        task = client.task(result.id)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "the call runs")
        assert task.cancel() is True
        with pytest.raises(TaskCancelledError):
            result.get(timeout=10)


def test_a_call_that_ignores_its_result_leaves_nothing(foreign: Celery, broker_url: str) -> None:
    foreign.send_task("promptmill.generate", args=["unheard"], queue=QUEUE, ignore_result=True)
    broker = client_of(broker_url)
    wait_until(lambda: list(broker.scan_iter("promptmill:answers:*")), "it is answered")
    wait_until(lambda: not list(broker.scan_iter("promptmill:record:*")), "its record is gone")


def test_a_call_that_expires_in_the_queue_is_revoked_as_celery_does_it(foreign: Celery) -> None:
    result = foreign.send_task("promptmill.generate", args=["late"], queue=QUEUE, expires=-1)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        result.get(timeout=10)


def test_promptmill_leaves_the_applications_celery_alone(foreign: Celery) -> None:
    import promptmill.celery  # noqa: F401

    assert celery.current_app.main == "foreign"
    assert foreign.conf.task_default_queue == "celery"
    assert list(foreign.conf.accept_content) == ["json"]


def raw(**changes: Any) -> bytes:
    """A message as kombu stores it, with something wrong in it."""
    message: dict[str, Any] = {
        "body": json.dumps([["a"], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "promptmill.generate", "id": "an-id", "argsrepr": "()", "kwargsrepr": "{}"},
        "properties": {
            "correlation_id": "an-id",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "delivery_tag": "a-tag",
        },
    }
    return json.dumps({**message, **changes}).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"\xff no JSON",
        b"[]",
        raw(properties={}),
        raw(body="no json"),
        raw(body="null"),
        raw(body=json.dumps([5, {}, {}])),
        raw(body=json.dumps(["a", 5, {}])),
        raw(body=json.dumps({})),
        raw(headers={}),
        raw(headers={"task": "no.such.task", "id": "an-id"}),
        raw(headers={"task": "promptmill.generate", "id": "an-id", "eta": "never"}),
        raw(**{"content-type": "application/x-python-serialize"}),
        raw(headers={"task": "promptmill.run", "id": "an-id"}),
        raw(headers={"task": "promptmill.run", "id": "an-id"}, body=json.dumps([["r", "l", "s", "many"], {}, {}])),
        raw(headers={"task": "promptmill.run", "id": "an-id"}, body=json.dumps([["r", "l", "score", "1"], {}, {}])),
    ],
)
def test_a_malformed_message_is_dropped_and_the_worker_goes_on(
    foreign: Celery, broker_url: str, worker: WorkerProcess, message: bytes
) -> None:
    broker = client_of(broker_url)
    broker.lpush(QUEUE, message)
    assert call(foreign, "the next one").get(timeout=10)["text"] == "the next one"
    lines = worker.log.count("\n")
    time.sleep(0.3)
    assert worker.log.count("\n") < lines + 20, "it goes round and round"
    assert broker.llen(QUEUE) == 0


def test_prompts_of_calls_are_hidden_from_events_and_from_inspect(foreign: Celery) -> None:
    seen: list[dict[str, Any]] = []
    with foreign.connection() as connection:
        receiver = foreign.events.Receiver(connection, handlers={"*": seen.append})
        watching = threading.Thread(target=lambda: _capture(receiver))
        watching.start()
        wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in seen), "events come")
        result = call(foreign, prompt="secret-marker " * 500, max_tokens=500)
        wait_until(lambda: any(event["type"] == "task-started" for event in seen), "the call runs")
        active = foreign.control.inspect(timeout=10, limit=1).active()
        result.get(timeout=30)
        wait_until(lambda: any(event["type"] == "task-succeeded" for event in seen), "the call is done")
        receiver.should_stop = True
        watching.join()
    assert result.id in json.dumps(active)
    assert "secret-marker" not in json.dumps(active)
    assert result.id in json.dumps(seen, default=str)
    assert "secret-marker" not in json.dumps(seen, default=str)


def test_a_worker_tells_inspect_its_card_and_no_password(foreign: Celery, broker_url: str) -> None:
    password = broker_url.split(":")[2].split("@")[0]
    [stats] = foreign.control.inspect(timeout=5).stats().values()
    assert stats["served name"] == "echo"
    assert stats["batch"] == "up to 64 requests"
    assert stats["broker"]["hostname"].endswith(".sock")
    assert password not in json.dumps(stats)


def _capture(receiver: Any) -> None:
    receiver.capture(limit=None, timeout=20, wakeup=True)
