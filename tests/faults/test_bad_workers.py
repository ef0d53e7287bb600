"""Workers that are killed in their work, sleep, take long, or are restarted one after the other."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from finishes import counted_finishes
from redis import Redis
from submitter import Submitter
from workers import WorkerProcess, a_worker, wait_until

#: A worker that others give up after two seconds.
HASTY = ("--lease-s", "2", "--beat-s", "0.5")
FIVE_SECONDS = "word " * 50

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tcp_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a named worker at 10 words a second, 8 prompts at once."""
    with ExitStack() as stack:

        def start_worker(name: str, *options: str) -> WorkerProcess:
            timed = ("--echo-tokens-per-s", "10", "--max-in-flight", "8", "--worker-name", name)
            return stack.enter_context(a_worker(tcp_url, tmp_path / name, *timed, *options, ready=False))

        yield start_worker


def answering(tcp_url: str) -> set[str]:
    """Names of the workers that share sixteen prompts."""
    submitter = Submitter(tcp_url)
    submitter.submit(["word " * 3] * 16)
    submitter.wait(30)
    return {result.worker for result in submitter.check().values()}


def test_a_sweeper_that_is_killed_while_leases_wait_is_followed_by_another(
    submitter: Submitter, broker: Redis, start: Start
) -> None:
    workers = {name: start(name, *HASTY) for name in ("one", "two", "three")}
    for worker in workers.values():
        worker.wait_until_ready()
    submitter.submit([FIVE_SECONDS] * 24)
    wait_until(lambda: broker.zcard("promptmill:leases") == 24, "all three are busy")
    workers.pop("one").send(signal.SIGKILL)
    wait_until(lambda: (broker.get("promptmill:sweeper") or b"").decode() in workers, "a living worker sweeps")
    sweeper = broker.get("promptmill:sweeper")
    assert sweeper is not None
    workers.pop(sweeper.decode()).send(signal.SIGKILL)
    assert broker.zcard("promptmill:leases") >= 16
    submitter.wait(60)
    results = submitter.check().values()
    [last] = workers
    assert {result.worker for result in results} == {last}
    assert {result.attempts for result in results} == {1, 2}


def test_a_worker_that_wakes_after_others_have_answered_does_no_harm(
    submitter: Submitter, tcp_url: str, start: Start
) -> None:
    sleeper = start("sleeper", *HASTY)
    sleeper.wait_until_ready()
    short = submitter.submit(["word " * 30] * 4 + ["word " * 70] * 4, chunk_size=8)[:4]
    wait_until(lambda: submitter.redis.zcard("promptmill:leases") == 1, "it has them")
    sleeper.send(signal.SIGSTOP)
    other = start("other", *HASTY)
    wait_until(lambda: submitter.told().keys() >= set(short), "the other has answered some", 60)
    first = submitter.results()
    sleeper.send(signal.SIGCONT)
    submitter.wait(60)
    wait_until(lambda: answering(tcp_url) == {"sleeper", "other"}, "both go on")
    results = submitter.check()
    assert {task: results[task] for task in first} == first
    assert {results[task].worker for task in short} == {"other"}
    assert other.log.count("Traceback") == sleeper.log.count("Traceback") == 0


def test_a_generation_of_eight_leases_is_not_run_twice(submitter: Submitter, start: Start) -> None:
    # With so frequent sweeps a machine that stands still for long takes no lease away.
    options = ("--lease-s", "2.5", "--beat-s", "0.3", "--sweep-s", "0.2", "--sweep-grace-s", "0.6")
    workers = [start(name, *options) for name in ("one", "two")]
    for worker in workers:
        worker.wait_until_ready()
    submitter.submit(["word " * 220])
    assert submitter.wait(60) > 19
    assert [result.attempts for result in submitter.check().values()] == [1]
    assert not any("swept" in worker.log or "lost the lease" in worker.log for worker in workers)


def test_a_rolling_restart_under_load_finishes_every_prompt_once(
    submitter: Submitter, broker: Redis, start: Start
) -> None:
    one, two = start("one"), start("two", "--grace-s", "0")
    one.wait_until_ready()
    two.wait_until_ready()
    with counted_finishes(broker) as finishes:
        for old, name in ((one, "one again"), (two, "two again")):
            submitter.submit(["word " * 6] * 120, chunk_size=3)
            time.sleep(1)
            old.send(signal.SIGTERM)
            assert old.wait(30) == 0
            start(name).wait_until_ready()
        submitter.submit(["word " * 6] * 60, chunk_size=3)
        submitter.wait(60)
    results = submitter.check().values()
    assert {result.worker for result in results} == {"one", "two", "one again", "two again"}
    assert {result.attempts for result in results} == {1}
    assert len(finishes) == 300
    assert set(finishes.values()) == {1}
    assert re.search(r"put \d prompts", two.log)


def test_a_dead_workers_prompts_soon_run_elsewhere_behind_a_queue_of_a_hundred_thousand(
    submitter: Submitter, broker: Redis, start: Start
) -> None:
    one = start("one")
    one.wait_until_ready()
    first = submitter.submit(["word " * 600] * 8)
    wait_until(lambda: broker.zcard("promptmill:leases") == 8, "it is busy")
    for _ in range(100):
        submitter.submit(["word"] * 1000, chunk_size=1000)
    two = start("two", "--max-in-flight", "64")
    two.wait_until_ready()
    one.send(signal.SIGKILL)
    wait_until(lambda: set(first) <= held_by("two", broker), "all run elsewhere", 25)


def held_by(worker: str, broker: Redis) -> set[str]:
    """The records that a worker has leases on."""
    tokens = [token.decode() for token in broker.zrange("promptmill:leases", 0, -1)]
    return {token.split("/")[0] for token in tokens if token.endswith(f"@{worker}")}
