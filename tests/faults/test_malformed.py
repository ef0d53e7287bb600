"""Malformed messages: none ends a worker, none blocks its queue, none is quoted in its log."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import client_of
from celery import Celery
from malformed import MARKER, QUEUE, malformed, pickled, yaml
from redis import Redis
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, GenerationRequest, InvalidRequestError
from promptmill.app import create_app
from promptmill.embedded import EmbeddedBroker
from promptmill.ledger import Entry, Ledger
from promptmill.names import Names, Priority, lane_name
from promptmill.protocol import answer_from_wire, requests_to_wire
from promptmill.settings import Settings

#: Every list that a worker reads, as kombu names them.
LISTS = [
    f"{queue}{suffix}" for queue in (f"{QUEUE}:again", QUEUE) for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169")
]


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log") as process:
        yield process


@pytest.fixture
def broker(worker: WorkerProcess, broker_url: str) -> Redis:
    return client_of(broker_url)


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    app = create_app(Settings.read({}, broker_url=broker_url))
    yield app
    app.close()


def push(broker: Redis, *messages: dict[str, Any]) -> None:
    broker.lpush(QUEUE, *(json.dumps(message) for message in messages))


def wait_until_all_is_read(broker: Redis, timeout_s: float = 120) -> None:
    def is_left() -> bool:
        time.sleep(0.1)
        with broker.pipeline(transaction=False) as pipe:
            for name in LISTS:
                pipe.llen(name)
            pipe.hlen("unacked")
            pipe.zcard("unacked_index")
            return any(pipe.execute())

    wait_until(lambda: not is_left(), "all messages are read and acknowledged", timeout_s)


def flood(broker: Redis, worker: WorkerProcess, broker_url: str, app: Celery, count: int) -> None:
    process_id, size_before = worker.pid, len(worker.log)
    names = itertools.cycle(LISTS)
    with broker.pipeline(transaction=False) as pipe:
        for message in malformed(count, seed=20260607):
            pipe.lpush(next(names), message)
        pipe.execute()
    wait_until_all_is_read(broker)
    with Client(broker_url, model="echo") as client:
        assert client.generate("still here").text == "still here"
    assert app.send_task("promptmill.generate", args=["here"], queue=QUEUE).get(timeout=20)["text"] == "here"
    wait_until_all_is_read(broker)
    wait_until(lambda: not list(broker.scan_iter("promptmill:record:*")), "no record is left", timeout_s=120)
    assert worker.pid == process_id
    said = worker.log[size_before:]
    assert len(said) < 500_000
    assert MARKER not in said
    assert "refused and deleted" in said


def test_pickle_and_yaml_are_refused_and_not_run(
    broker: Redis, worker: WorkerProcess, app: Celery, tmp_path: Path
) -> None:
    trap = tmp_path / "was-run"
    pickle.loads(base64.b64decode(pickled(trap)["body"]))
    assert trap.exists(), "the trap works"
    trap.unlink()
    told = re.compile(r"refused and deleted (\d+) message\(s\): body: can't be decoded \(ContentDisallowed\)")
    push(broker, pickled(trap), yaml(trap))
    wait_until(lambda: sum(map(int, told.findall(worker.log))) == 2, "both are refused")
    wait_until_all_is_read(broker)
    assert not trap.exists()


def test_a_request_that_a_worker_can_not_read_leaves_its_neighbours_alone(broker: Redis, worker: WorkerProcess) -> None:
    good = requests_to_wire([GenerationRequest.of("good")])
    lines = [good, b'{"prompt": "a", "sampling": {"of_a_newer_client": 1}}', b"no request", good]
    ledger = Ledger(broker, Names("promptmill:"))
    ledger.enter([Entry("r", lane_name(QUEUE, Priority.NORMAL), b"\n".join(lines), len(lines))])
    wait_until(lambda: len(ledger.look(["r"])[0].answers) == len(lines), "all are answered")
    answers = [answer_from_wire(wire) for _, wire in sorted(ledger.look(["r"])[0].answers.items())]
    assert [getattr(answer, "text", type(answer)) for answer in answers] == [
        *("good", InvalidRequestError, InvalidRequestError, "good")
    ]
    assert "unknown parameter 'of_a_newer_client'" in str(answers[1])


def test_ten_thousand_malformed_messages_are_refused_and_the_worker_goes_on(
    broker: Redis, worker: WorkerProcess, broker_url: str, app: Celery
) -> None:
    flood(broker, worker, broker_url, app, 10_000)
