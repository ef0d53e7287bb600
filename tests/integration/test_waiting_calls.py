"""Plain Celery calls that no worker has taken yet: the ledger knows nothing of them, and an autoscaler has to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from workers import a_worker, wait_until

from promptmill import Client


@pytest.fixture
def foreign(any_broker_url: str) -> Iterator[Celery]:
    """An application's own Celery."""
    with Celery("foreign", broker=any_broker_url, backend=any_broker_url, set_as_current=False) as app:
        yield app


def call(app: Celery, prompt: str = "one two") -> None:
    app.send_task("promptmill.generate", kwargs={"prompt": prompt}, queue="promptmill.echo")


def unfinished(client: Client) -> dict[str, int]:
    return {model.name: model.unfinished for model in client.fleet().models}


def test_plain_calls_count_as_unfinished_also_where_no_worker_is_left(
    foreign: Celery, any_broker_url: str, tmp_path: Path
) -> None:
    with Client(any_broker_url, model="echo") as client:
        with a_worker(any_broker_url, tmp_path / "log") as worker:
            client.generate("one two")
            worker.send(signal.SIGTERM)
            worker.wait(30)
        call(foreign)
        call(foreign)
        client.submit("one two")
        assert unfinished(client) == {"echo": 3}
        [model] = client.fleet().models
        assert (model.workers, model.queued) == (0, 1)
        with a_worker(any_broker_url, tmp_path / "log"):
            wait_until(lambda: unfinished(client) == {"echo": 0}, "all are done")


def test_plain_calls_beyond_what_a_worker_takes_count_once(
    foreign: Celery, any_broker_url: str, tmp_path: Path
) -> None:
    with a_worker(any_broker_url, tmp_path / "log", "--max-batch", "4", "--echo-tokens-per-s", "1"):
        for _ in range(50):
            call(foreign, "word " * 200)
        with Client(any_broker_url, model="echo") as client:
            wait_until(lambda: client.fleet().models[0].in_flight >= 4, "it is full")
            wait_until(lambda: unfinished(client) == {"echo": 50}, "each is counted once")
            assert client.fleet().models[0].in_flight < 10
