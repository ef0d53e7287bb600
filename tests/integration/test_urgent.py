"""Urgent prompts in a worker that has claimed all it can hold of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_ledger import Bench
from workers import a_worker, wait_until

from promptmill import Client, TaskCancelledError, TaskExpiredError
from promptmill.ledger import Entry
from promptmill.names import Priority, lane_name, queue_name
from promptmill.protocol import GenerationRequest, answer_to_wire, requests_to_wire
from promptmill_worker.echo import FAULT_DIE
from promptmill_worker.settings import WorkerSettings

#: How many run at once, and how many go into one record.
BATCH, CHUNK = 4, 8
QUEUE = queue_name("echo")


def enter(bench: Bench, prompts: list[str], priority: Priority, chunk_size: int, name: str) -> None:
    """Enters prompts in chunks, all to be answered to one stream, which tells in which order they were."""
    chunks = [prompts[start : start + chunk_size] for start in range(0, len(prompts), chunk_size)]
    entries = [
        Entry(
            f"{name}{number}",
            lane_name(QUEUE, priority),
            requests_to_wire([GenerationRequest.of(prompt) for prompt in chunk]),
            len(chunk),
            reply=bench.stream_key,
        )
        for number, chunk in enumerate(chunks)
    ]
    assert set(bench.ledger.enter(entries)) == {"entered"}


def answered(bench: Bench) -> list[str]:
    """The records of all answers, in their order."""
    return [record for record, _, _ in bench.stream()]


def test_an_urgent_prompt_behind_ten_thousand_starts_with_the_next_free_slots(broker_url: str, tmp_path: Path) -> None:
    places = WorkerSettings.read({}, model="echo", max_batch=BATCH).places
    bench = Bench(broker_url)
    enter(bench, ["word " * 6] * 10_000, Priority.LOW, CHUNK, "low")
    options = ("--max-batch", str(BATCH), "--echo-tokens-per-s", "60", "--beat-s", "0.2")
    with a_worker(broker_url, tmp_path / "log", *options), Client(broker_url, model="echo") as client:
        for name in ("urgent", "another", "third"):
            low = len(bench.stream())
            wait_until(lambda low=low: len(bench.stream()) >= low + 20, "low ones are answered")
            enter(bench, ["now"], Priority.HIGH, 1, name)
            before = len(bench.stream())
            wait_until(lambda name=name: f"{name}0" in answered(bench), "it is answered")
            # All that was claimed or on its way when it came, and what runs beside it.
            assert answered(bench).index(f"{name}0") - before <= places + BATCH

        def is_full() -> bool:
            workers = client.fleet().workers  # none, while its beat is late
            for worker in workers:
                assert worker.running <= worker.max_batch == BATCH
                assert worker.waiting <= places - BATCH
            return [worker.running == BATCH and worker.waiting > 0 for worker in workers] == [True]

        wait_until(is_full, "it is full, and some wait in it")
    bench.redis.close()


def test_a_prompt_that_waited_in_a_worker_whose_engine_died_has_lost_no_attempt(
    broker_url: str, tmp_path: Path
) -> None:
    prompts = ["one two three", "long " * 50, FAULT_DIE, "never", "never", "in"]
    bench = Bench(broker_url)
    enter(bench, prompts, Priority.NORMAL, len(prompts), "r")
    options = ("--echo-tokens-per-s", "10", "--max-batch", "2", "--max-in-flight", "8")
    with a_worker(broker_url, tmp_path / "one", *options) as one:
        assert one.wait(30) != 0
    # The first made room for the fault, and the second ran beside it.
    assert set(bench.answers("r0")) == {0}
    bench.ledger.settle("r0", answer_to_wire(TaskCancelledError("cancelled")), [2])
    with a_worker(broker_url, tmp_path / "two"), Client(broker_url, model="echo") as client:
        results = [client.task(task_id).result(timeout_s=30) for task_id in ("r0", *(f"r0:{n}" for n in (1, 3, 4, 5)))]
    assert [result.attempts for result in results] == [1, 2, 1, 1, 1]
    assert [result.timings.queued_s is not None for result in results] == [True] * 5
    bench.redis.close()


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_prompt_that_waits_in_the_worker_ends_there(broker_url: str, tmp_path: Path, how: str) -> None:
    options = ("--echo-tokens-per-s", "10", "--max-batch", "1", "--beat-s", "0.2")
    with a_worker(broker_url, tmp_path / "log", *options), Client(broker_url, model="echo") as client:
        first = client.submit("word " * 600, max_tokens=600)
        wait_until(lambda: [worker.running for worker in client.fleet().workers] == [1], "the first runs")
        waiting = client.submit("word", timeout_s=None if how == "cancelled" else 8.0)
        wait_until(lambda: [worker.waiting for worker in client.fleet().workers] == [1], "one waits")
        if how == "cancelled":
            waiting.cancel()
        with pytest.raises(TaskCancelledError if how == "cancelled" else TaskExpiredError) as caught:
            waiting.result(timeout_s=30)
        assert how == "cancelled" or "before it ran" in str(caught.value)
        wait_until(lambda: [(w.waiting, w.running) for w in client.fleet().workers] == [(0, 1)], "only one is left")
        first.cancel()
