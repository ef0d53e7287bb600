"""Queues that are purged: in the ledger, under real workers, and on the command line."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from brokers import client_of, free_port
from command_line import promptmill
from test_ledger import Bench
from workers import a_worker, wait_until

from promptmill import Client, GenerationResult, TaskCancelledError, TaskStatus
from promptmill.app import create_app
from promptmill.names import Priority
from promptmill.queue_control import QueueControl, Queued
from promptmill.settings import ClientSettings, Settings


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


@pytest.fixture
def control(any_broker_url: str) -> Iterator[QueueControl]:
    with QueueControl(ClientSettings.read({}, broker_url=any_broker_url)) as control:
        yield control


def queue(broker_url: str, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return promptmill("queue", *arguments, broker=broker_url, **options)


def raw_call(task_id: str, task: str = "promptmill.generate") -> bytes:
    """A plain call as kombu stores it; what purging reads of it, at least."""
    return json.dumps({"body": "[[], {}, {}]", "headers": {"id": task_id, "task": task}}).encode()


def errors(bench: Bench) -> set[bytes]:
    return {wire for _, _, wire in bench.stream()}


# The ledger.


def test_all_that_is_queued_ends_and_nothing_is_left(bench: Bench, control: QueueControl) -> None:
    for number, priority in enumerate((3, 6, 9, 6)):
        bench.enter(f"r{number}", 700, priority)
    for number in range(150):
        bench.enter(f"s{number}")
    assert control.queued("m") == Queued(prompts=2950, calls=0)
    assert control.purge("m") == Queued(prompts=2950, calls=0)
    told = bench.stream()
    assert len({(record_id, position) for record_id, position, _ in told}) == len(told) == 2950
    assert [json.loads(wire)["error"] for wire in errors(bench)] == [
        {"type": "TaskCancelledError", "args": ["the queue was purged"]}
    ]
    left = {key.decode() for key in bench.redis.scan_iter("*") if not re.search(b"answers|memory", key)}
    assert left == {"promptmill:clock", "promptmill:totals", bench.stream_key}


def test_what_workers_hold_goes_on(bench: Bench, control: QueueControl) -> None:
    bench.enter("r", 5)
    held = bench.pop_and_claim(room=2)
    assert control.purge("m") == Queued(prompts=3, calls=0)
    assert bench.pointers() == []
    assert bench.ledger.renew([held.token], 60.0) == []
    assert sorted(position for _, position, _ in bench.stream()) == [2, 3, 4]
    bench.finish_all(held)
    assert len(bench.answers("r")) == 5
    assert not bench.redis.exists(bench.names.record("r"), f"{bench.names.prefix}prompts")


def test_what_is_put_back_after_a_purge_is_worked_off(bench: Bench, control: QueueControl) -> None:
    bench.enter("r", 5)
    held = bench.pop_and_claim(room=2)
    control.purge("m")
    bench.ledger.put_back("r", held.token)
    bench.finish_all(bench.pop_and_claim())
    assert not bench.redis.exists(bench.names.record("r"))


def test_what_is_entered_after_a_purge_began_stays_in_its_order(
    bench: Bench, control: QueueControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        bench.enter(f"old{number}")
    last_time = control._ledger.last_time

    def and_then_others_come() -> int:
        began = last_time()
        for number in range(400):
            bench.enter(f"new{number}")
        return began

    monkeypatch.setattr(control._ledger, "last_time", and_then_others_come)
    assert control.purge("m").prompts == 300
    assert [pointer[0] for pointer in bench.pointers()] == [f"new{number}" for number in range(400)]


def test_messages_that_lead_nowhere_go_and_calls_are_counted(bench: Bench, control: QueueControl) -> None:
    bench.enter("cancelled")
    bench.ledger.settle("cancelled", b"{}")
    for number in range(600):
        bench.redis.lpush("promptmill.m" + ("\x06\x169" if number % 2 else ""), raw_call(f"call{number}"))
    bench.redis.lpush("promptmill.m", b"\xff no JSON", b"[]", b'{"headers": {"id": ["a"]}}', b"[" * 5000)
    assert control.queued("m") == Queued(prompts=0, calls=605)
    assert control.purge("m") == Queued(prompts=0, calls=604)
    assert bench.redis.llen("promptmill.m") == bench.redis.llen("promptmill.m\x06\x169") == 0
    assert not bench.redis.exists(bench.names.lanes)


def test_a_plain_call_that_waits_again_is_told_by_a_worker(bench: Bench, control: QueueControl) -> None:
    halves = (raw_call("an-id").decode()[:-1] + ', "tag": "', '"}')
    bench.enter("an-id", 1, Priority.FRONT, reply="", message_halves=halves)
    claim = bench.claimed("an-id")
    bench.ledger.put_back("an-id", claim.token)
    assert control.purge("m") == Queued(prompts=1, calls=0)
    assert control.purge("m") == Queued(prompts=0, calls=0)
    handed = bench.claimed("an-id")
    assert handed.answer is not None
    assert b"purged" in handed.answer
    bench.ledger.drop("an-id")
    assert not bench.redis.exists(f"{bench.names.prefix}prompts")


def test_large_messages_are_gone_through_few_at_a_time(bench: Bench, control: QueueControl) -> None:
    message = json.dumps({"body": "x" * 900_000, "headers": {"id": "large", "task": "promptmill.generate"}})
    for _ in range(7):
        bench.redis.lpush("promptmill.m", message)
    assert control._ledger.clear("promptmill.m|0", 7) == (3, 3)
    assert control.purge("m").calls == 4


def test_a_broker_without_memory_can_be_purged(bench: Bench, control: QueueControl) -> None:
    bench.enter("r", 5)
    bench.redis.config_set("maxmemory", "1")
    try:
        assert control.purge("m").prompts == 5
    finally:
        bench.redis.config_set("maxmemory", "0")


# Clients and workers.


def test_maps_tasks_and_streams_of_20000_prompts_end_cancelled(any_broker_url: str) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        Client(any_broker_url, model="echo") as client,
        QueueControl(ClientSettings.read({}, broker_url=any_broker_url)) as control,
        client_of(any_broker_url) as redis,
    ):
        prompts = (f"prompt {number}" for number in range(20_000))
        # With room left over: of a chunk that took long to read, less is sent, and no whole one fits the rest.
        run = client.map(prompts, max_in_flight=30_000, chunk_size=250, on_error="yield", ordered=False)
        mapping = pool.submit(list, run)
        tasks = [client.submit(f"task {number}", priority="low") for number in range(100)]
        app = create_app(Settings.read({}, broker_url=any_broker_url))
        for number in range(30):
            app.send_task("promptmill.generate", args=[f"call {number}"], queue="promptmill.echo")
        app.close()

        def all_is_queued() -> bool:
            if mapping.done():
                mapping.result()  # its own error says more than the time that passed
            return redis.hget("promptmill:prompts", "promptmill.echo") == b"20100"

        wait_until(all_is_queued, "all is queued", 60)
        assert control.queued("echo") == Queued(20_100, 30)
        assert control.purge("echo") == Queued(20_100, 30)
        seen = mapping.result(60)
        assert {type(result.error) for result in seen} == {TaskCancelledError}
        assert sorted(result.index for result in seen) == list(range(20_000))
        for task in tasks:
            with pytest.raises(TaskCancelledError, match="the queue was purged"):
                task.result(timeout_s=10)
            assert task.status() is TaskStatus.CANCELLED
        kept = {key.partition(b":")[2].partition(b":")[0] for key in redis.scan_iter("promptmill*")}
        assert kept <= {b"answers", b"clock", b"totals", b"replies", b"memory"}


def test_a_map_that_goes_on_after_errors_does_not_make_a_purge_endless(broker_url: str) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        Client(broker_url, model="echo") as client,
        QueueControl(ClientSettings.read({}, broker_url=broker_url)) as control,
    ):
        run = client.map(("prompt" for _ in iter(int, 1)), max_in_flight=64, chunk_size=1, on_error="yield")
        mapping = pool.submit(lambda: [_ for _, _ in zip(run, range(300), strict=False)])
        purged = 0
        while not mapping.done():  # each purge ends what waits when it begins
            if client_of(broker_url).exists("promptmill:lanes"):
                purged += control.purge("echo").prompts
        assert len(mapping.result()) == 300
        assert purged >= 300


def test_a_purge_while_workers_claim_leaves_each_prompt_one_end(broker_url: str, tmp_path: Path) -> None:
    options = ("--echo-tokens-per-s", "200", "--max-in-flight", "64")
    with (
        ThreadPoolExecutor(1) as pool,
        a_worker(broker_url, tmp_path / "one", *options),
        a_worker(broker_url, tmp_path / "two", *options),
        Client(broker_url, model="echo") as client,
        QueueControl(ClientSettings.read({}, broker_url=broker_url)) as control,
        client_of(broker_url) as redis,
    ):
        run = client.map(["word " * 20] * 6000, max_in_flight=6000, chunk_size=100, on_error="yield", ordered=False)
        results: list[GenerationResult] = []
        mapping = pool.submit(results.extend, run)
        wait_until(lambda: len(results) > 100 or mapping.done(), "some are answered")
        purged = control.purge("echo").prompts
        mapping.result(60)
        assert sorted(result.index for result in results) == list(range(6000))
        assert sum(result.error is not None for result in results) == purged > 1000
        wait_until(lambda: not redis.exists("promptmill:prompts", "promptmill:lanes", "promptmill:leases"), "all gone")
        assert client.generate("the next one").text == "the next one"


def test_a_plain_call_in_a_workers_care_hears_that_it_was_purged(broker_url: str, tmp_path: Path) -> None:
    app = create_app(Settings.read({}, broker_url=broker_url))
    with QueueControl(ClientSettings.read({}, broker_url=broker_url)) as control:
        with a_worker(broker_url, tmp_path / "one", "--echo-tokens-per-s", "10", "--grace-s", "0.1") as worker:
            call = app.send_task(
                "promptmill.generate", args=["word " * 200], queue="promptmill.echo", ignore_result=False
            )
            wait_until(lambda: client_of(broker_url).zcard("promptmill:leases"), "it runs")
            worker.send(15)
            worker.wait(20)  # it puts the call back
        assert control.purge("echo") == Queued(1, 0)
        with a_worker(broker_url, tmp_path / "two"), pytest.raises(TaskCancelledError, match="purged"):
            call.get(timeout=20)
    app.close()


# The command line.


def test_purge_asks_with_the_count_and_refuses_where_nobody_answers(broker_url: str) -> None:
    bench = Bench(broker_url)
    bench.enter("r", 1200)
    bench.redis.lpush("promptmill.m", raw_call("a"))
    for answer in ("", "n\n"):
        refused = queue(broker_url, "purge", "m", text=answer)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Cancel 1,200 prompts waiting for m, and delete 1 other message?" in refused.stderr
        assert "nothing was purged" in refused.stderr
    assert len(bench.stream()) == 0
    assert queue(broker_url, "purge", "m", text="y\n").returncode == 0
    assert len(bench.stream()) == 1200
    bench.enter("s", 2)
    purged = queue(broker_url, "purge", "m", "--yes", "--json")
    assert (purged.returncode, json.loads(purged.stdout)) == (0, {"model": "m", "prompts": 2, "calls": 0})
    assert purged.stderr == "2 prompts cancelled, 0 plain calls deleted\n"
    bench.redis.close()


def test_pause_and_resume_say_what_they_did_and_status_shows_it(broker_url: str) -> None:
    bench = Bench(broker_url)
    bench.enter("r")
    bench.redis.close()

    def said(verb: str) -> str:
        done = queue(broker_url, verb, "m")
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    def status(*options: str) -> str:
        return promptmill("status", *options, broker=broker_url).stdout

    assert said("pause") == "the queue of m is paused: what runs goes on, and nothing else begins\n"
    assert said("pause") == "the queue of m was paused already\n"
    assert "m (paused)" in status()
    assert json.loads(status("--json"))["models"][0]["paused"] is True
    assert said("resume") == "the queue of m is worked off again\n"
    assert said("resume") == "the queue of m was not paused\n"
    assert "paused" not in status()


@pytest.mark.parametrize("verb", [("pause",), ("resume",), ("purge", "--yes")])
def test_an_unknown_model_is_wrong_usage_in_one_sentence(broker_url: str, verb: tuple[str, ...]) -> None:
    bench = Bench(broker_url)
    bench.enter("r")
    bench.redis.close()
    refused = queue(broker_url, *verb, "smolm2")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == ("promptmill: no worker serves 'smolm2' and nothing is queued for it; known are: m\n")


def test_a_broker_that_is_down_is_named(tmp_path: Path) -> None:
    port = free_port()
    refused = queue(f"redis://:hidden@127.0.0.1:{port}/0", "pause", "m", PROMPTMILL_BROKER_TIMEOUT_S="0.1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "hidden" not in refused.stderr


@pytest.mark.parametrize("arguments", [("pause",), ("purge",), ("stop", "m"), ("pause", "a", "b")])
def test_wrong_usage_exits_two(arguments: tuple[str, ...]) -> None:
    refused = queue("", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Error: " in refused.stderr
