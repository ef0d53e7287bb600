"""Prompts that kill their workers, and their innocent neighbours, with real workers that really die."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from redis import Redis
from submitter import Submitter
from workers import a_worker, wait_until

from promptmill import Client, TooManyDeliveriesError
from promptmill.names import Names
from promptmill_worker.echo import FAULT_DIE, FAULT_HANG, FAULT_KILL

#: Dead workers are found out sooner than by default, so that the tests are short.
HASTY = ("--lease-s", "1.5", "--beat-s", "0.4", "--sweep-s", "0.3", "--sweep-grace-s", "1")
TIMED = ("--echo-tokens-per-s", "20")


def dead_letters(broker: Redis) -> int:
    return broker.xlen(Names("promptmill:").dead_letters)


def holds(broker: Redis, worker: str) -> bool:
    return any(token.endswith(f"@{worker}".encode()) for token in broker.zrange(Names("promptmill:").leases, 0, -1))


@pytest.mark.parametrize("fault", [FAULT_KILL, FAULT_DIE, FAULT_HANG])
def test_a_prompt_that_ends_every_worker_is_stopped_and_its_neighbours_are_answered(
    tcp_url: str, broker: Redis, tmp_path: Path, fault: str
) -> None:
    innocent = [f"{number} " + "word " * 15 for number in range(12)]
    with Client(tcp_url, model="echo") as client, ExitStack() as workers:
        for name in ("one", "two"):
            options = (*HASTY, *TIMED, "--engine-stall-s", "1.5", "--worker-name", name)
            workers.enter_context(a_worker(tcp_url, tmp_path / name, *options, restart=True))
        prompts = [*innocent[:6], fault, *innocent[6:]]
        results = list(client.map(prompts, chunk_size=13, on_error="yield"))
        for result in results:
            if prompts[result.index] != fault:
                assert result.error is None, result.error
                assert result.text == prompts[result.index].strip()
    [stopped] = [result for result in results if result.error is not None]
    assert isinstance(stopped.error, TooManyDeliveriesError)
    assert (prompts[stopped.index], stopped.error.attempts) == (fault, 3)
    assert dead_letters(broker) == 1


def test_a_prompt_alone_leaves_the_worker_as_it_was(tcp_url: str, broker: Redis, tmp_path: Path) -> None:
    """An innocent prompt that saw two workers die runs alone in the third, and then others run beside each other."""
    with Client(tcp_url, model="echo") as client:
        task = client.submit("word " * 40)
        for name in ("one", "two"):
            with a_worker(tcp_url, tmp_path / name, *HASTY, *TIMED, "--worker-name", name) as worker:
                wait_until(partial(holds, broker, name), "it runs")
                worker.send(signal.SIGKILL)
        with a_worker(tcp_url, tmp_path / "three", *HASTY, *TIMED):
            others = [client.submit(f"{number} " + "word " * 40) for number in range(8)]
            assert task.result(timeout_s=40).attempts == 3
            submitted_at = time.monotonic()
            assert [other.result(timeout_s=40).attempts for other in others] == [1] * 8
            # Eight of two seconds each: one after the other they would take sixteen.
            assert time.monotonic() - submitted_at < 12
    assert dead_letters(broker) == 0


@pytest.mark.soak
def test_fifty_kills_of_workers_make_no_innocent_a_dead_letter(
    tcp_url: str, broker: Redis, submitter: Submitter, tmp_path: Path
) -> None:
    chance = random.Random(4)
    options = (*HASTY, "--echo-tokens-per-s", "40", "--max-in-flight", "16")
    with ExitStack() as stack:
        workers = [stack.enter_context(a_worker(tcp_url, tmp_path / str(number), *options)) for number in range(3)]
        kills = 0
        submitter.submit([f"{number} " + "word " * 30 for number in range(4000)], chunk_size=20)
        while kills < 50:
            time.sleep(chance.uniform(0.5, 2.0))
            number = chance.randrange(len(workers))
            workers[number].send(signal.SIGKILL)
            kills += 1
            workers[number] = stack.enter_context(
                a_worker(tcp_url, tmp_path / f"{number}.{kills}", *options, ready=False)
            )
        submitter.wait(600)
        results = submitter.check()
    assert dead_letters(broker) == 0
    assert max(result.attempts for result in results.values()) > 2
