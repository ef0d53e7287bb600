"""Queues that are paused and resumed: in the ledger, and under real workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import client_of, free_port
from celery import Celery
from test_health import page
from test_ledger import CANCELLED, Bench
from workers import a_worker, wait_until

from promptmill import Client, InvalidRequestError, TaskExpiredError
from promptmill.app import create_app
from promptmill.ledger import Claim
from promptmill.names import Priority
from promptmill.queue_control import QueueControl
from promptmill.settings import ClientSettings, Settings

#: How often the workers of these tests look whether their queue is paused.
BEAT = ("--beat-s", "0.2")


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


@pytest.fixture
def control(any_broker_url: str) -> Iterator[QueueControl]:
    with QueueControl(ClientSettings.read({}, broker_url=any_broker_url)) as control:
        yield control


@pytest.fixture
def broker_control(broker_url: str) -> Iterator[QueueControl]:
    with QueueControl(ClientSettings.read({}, broker_url=broker_url)) as control:
        yield control


@pytest.fixture
def foreign(broker_url: str) -> Iterator[Celery]:
    app = create_app(Settings.read({}, broker_url=broker_url))
    app.conf.task_ignore_result = False
    yield app
    app.close()


# The ledger.


def test_nothing_of_a_paused_queue_is_claimed_and_its_pointer_goes_back(bench: Bench, control: QueueControl) -> None:
    bench.enter("first", 3)
    bench.enter("second", priority=Priority.HIGH)
    assert (control.pause("m"), control.pause("m")) == (True, False)
    pointers = [bench.pop(), bench.pop()]
    assert [bench.claim(pointer[0], "a", 64, *pointer[1:3]) for pointer in pointers if pointer] == ["paused"] * 2
    assert [pointer[0] for pointer in bench.pointers()] == ["second", "first"]
    assert bench.redis.zcard(bench.names.leases) == 0
    assert (control.resume("m"), control.resume("m")) == (True, False)
    assert [bench.pop_and_claim().positions for _ in range(2)] == [(0,), (0, 1, 2)]


def test_another_models_queue_is_not_paused(bench: Bench, control: QueueControl) -> None:
    bench.enter("r")
    bench.queue = "promptmill.n"
    bench.enter("s")
    control.pause("m")
    assert isinstance(bench.claim("s"), Claim)


def test_the_sweep_leaves_what_waits_in_a_pause_where_it_is(bench: Bench, control: QueueControl) -> None:
    for record_id in ("a", "b", "c"):
        bench.enter(record_id)
    control.pause("m")
    popped = bench.pop()
    assert popped is not None
    assert bench.claim(popped[0], "a", 1, *popped[1:3]) == "paused"
    assert [bench.sweep() for _ in range(6)] == [[]] * 6
    assert len(bench.pointers()) == 3


def test_a_pointer_that_is_lost_in_a_pause_comes_back_once(bench: Bench, control: QueueControl) -> None:
    bench.enter("r")
    control.pause("m")
    bench.pop()  # by a worker that died before it claimed
    assert [line for _ in range(6) for line in bench.sweep()] == ["pointer r"]
    assert [pointer[0] for pointer in bench.pointers()] == ["r"]


def test_a_plain_call_that_is_entered_in_a_pause_waits_under_its_id(bench: Bench, control: QueueControl) -> None:
    bench.enter("r")
    control.pause("m")
    bench.enter_plain_call("an-id")
    assert bench.claim("an-id") == "paused"
    assert [message.get("call") for message in bench.messages()] == ["an-id", None]
    assert [bench.sweep() for _ in range(4)] == [[]] * 4
    control.resume("m")
    assert bench.claimed("an-id").positions == (0,)


def test_a_claim_from_before_the_pause_goes_on(bench: Bench, control: QueueControl) -> None:
    bench.enter("r", 3)
    held = bench.claimed("r", room=2)
    control.pause("m")
    assert bench.claimed("r").positions == held.positions  # its reply was lost, and the worker asks again
    assert bench.claim("r", "another") == "paused"
    bench.finish_all(held)
    assert bench.ledger.put_back("r", held.token) == 0
    assert bench.open("r") == {2}


def test_the_answer_of_a_plain_call_is_handed_over_in_a_pause(bench: Bench, control: QueueControl) -> None:
    bench.enter_plain_call("an-id")
    control.pause("m")
    bench.ledger.settle("an-id", CANCELLED)
    assert bench.claimed("an-id").answer == CANCELLED


def test_a_deadline_ends_what_waits_in_a_pause(bench: Bench, control: QueueControl) -> None:
    bench.enter("r", 2)
    control.pause("m")
    bench.expire_record("r")
    assert bench.sweep() == ["deadline r"]
    assert [position for _, position, _ in bench.stream()] == [0, 1]


# Real workers.


def test_in_a_pause_what_runs_ends_nothing_begins_and_afterwards_all_are_answered_once(
    broker_url: str, tmp_path: Path, foreign: Celery, broker_control: QueueControl
) -> None:
    port, bench = free_port(), Bench(broker_url, queue="promptmill.echo")
    options = (*BEAT, "--echo-tokens-per-s", "100", "--max-in-flight", "4", "--metrics-port", str(port))
    with (
        a_worker(broker_url, tmp_path / "one", *options, "--worker-name", "one") as one,
        Client(broker_url, model="echo") as client,
    ):
        running = client.submit("word " * 500, max_tokens=500)
        wait_until(lambda: running.status() == "running", "it runs")
        broker_control.pause("echo")
        wait_until(lambda: "the queue is paused" in one.log, "the worker knows")
        tasks = [client.submit(f"prompt {number}", priority="high") for number in range(20)]
        calls = [
            foreign.send_task("promptmill.generate", args=[f"call {number}"], queue="promptmill.echo")
            for number in range(5)
        ]
        assert bench.claim(tasks[0].id) == "paused"
        with a_worker(broker_url, tmp_path / "two", *BEAT, "--worker-name", "two") as two:
            wait_until(lambda: "the queue is paused" in two.log, "a worker that is started later knows")
            assert running.result(timeout_s=30).worker == "one"
            time.sleep(1)  # workers that would take something have had the time
            assert bench.redis.zcard(bench.names.leases) == 0
            assert {task.status() for task in tasks} == {"queued"}
            assert not any(call.ready() for call in calls)
            assert page(port, "/readyz")[0] == 200
            wait_until(
                lambda: [(m.paused, m.workers, m.running) for m in client.fleet().models] == [(True, 2, 0)],
                "both workers are shown, and nothing runs",
            )
            assert client.fleet().models[0].queued >= len(tasks)
            broker_control.resume("echo")
            assert [task.result(timeout_s=20).attempts for task in tasks] == [1] * len(tasks)
            assert [call.get(timeout=20)["attempts"] for call in calls] == [1] * len(calls)
            assert not client.fleet().models[0].paused
            answered = len(tasks) + len(calls) + 1
            wait_until(lambda: sum(w.prompts_done for w in client.fleet().workers) == answered, "each ran once")
            assert "lease" not in one.log + two.log
            assert "swept" not in one.log + two.log
    bench.redis.close()


def test_what_a_worker_pops_before_it_knows_of_the_pause_waits_and_keeps_its_place(
    broker_url: str, tmp_path: Path, foreign: Celery, broker_control: QueueControl
) -> None:
    bench = Bench(broker_url, queue="promptmill.echo")
    with Client(broker_url, model="echo") as client:
        # Its beat comes too late: it hears of the pause from a claim alone.
        with a_worker(broker_url, tmp_path / "one", "--beat-s", "60", "--lease-s", "300") as one:
            assert client.generate("it works").attempts == 1
            broker_control.pause("echo")
            call = foreign.send_task("promptmill.generate", args=["a call"], queue="promptmill.echo")
            wait_until(lambda: "the queue is paused" in one.log, "the worker knows")
            assert bench.open(call.id) == {0}
            # Twice, if the worker was about to pop again when it heard.
            wait_until(lambda: [message["headers"]["id"] for message in bench.messages()] == [call.id], "it is back")
            task = client.submit("a prompt")
            time.sleep(1.5)  # longer than one BRPOP waits
            assert (call.ready(), task.status()) == (False, "queued")
            assert len(bench.messages()) == 2
        broker_control.resume("echo")
        with a_worker(broker_url, tmp_path / "two", *BEAT):
            assert call.get(timeout=20)["attempts"] == 1
            assert task.result(timeout_s=20).attempts == 1
    bench.redis.close()


def test_a_worker_that_is_started_in_a_pause_takes_nothing_and_is_idle(
    broker_url: str, tmp_path: Path, broker_control: QueueControl
) -> None:
    with Client(broker_url, model="echo") as client:
        tasks = [client.submit(f"prompt {number}") for number in range(10)]
        broker_control.pause("echo")
        with a_worker(broker_url, tmp_path / "log", "--beat-s", "0.5") as worker, client_of(broker_url) as redis:
            wait_until(lambda: "the queue is paused" in worker.log, "the worker knows")
            time.sleep(1)
            commands = redis.info("stats")["total_commands_processed"]
            time.sleep(2)
            # Beats, sweeps and their like: some dozens. One that spins would send thousands.
            assert redis.info("stats")["total_commands_processed"] - commands < 300
            assert {task.status() for task in tasks} == {"queued"}
            broker_control.resume("echo")
            assert [task.result(timeout_s=20).attempts for task in tasks] == [1] * 10


# Models that nobody knows.


def test_an_unknown_model_is_refused_with_the_known_ones(bench: Bench, control: QueueControl) -> None:
    bench.enter("r")
    bench.redis.lpush("promptmill.called", "{}")
    for verb in (control.pause, control.resume, control.queued, control.purge):
        with pytest.raises(InvalidRequestError, match=r"no worker serves 'other'.*known are: m$"):
            verb("other")
    assert control.pause("called") is True
    with pytest.raises(InvalidRequestError, match=r"known are: called, m$"):
        control.pause("other")


def test_a_task_that_waits_in_a_pause_expires(broker_url: str, tmp_path: Path, broker_control: QueueControl) -> None:
    with a_worker(broker_url, tmp_path / "log", *BEAT), Client(broker_url, model="echo") as client:
        broker_control.pause("echo")
        task = client.submit("too late", timeout_s=0.5)
        with pytest.raises(TaskExpiredError):
            task.result(timeout_s=20)
