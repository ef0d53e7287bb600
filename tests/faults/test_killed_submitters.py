"""Submitters with idempotency keys that die, or are cut off, at any moment."""

from __future__ import annotations

import multiprocessing
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from brokers import client_of
from finishes import counted_finishes
from proxy import Proxy
from redis import Redis
from workers import a_worker, wait_until

from promptmill import BrokerUnavailableError, Client

#: How many prompts the submitter has to hand in.
ORDERS = 300
#: How many more than those before it a life hands in at most: however late a kill comes, others have some left.
MOST_OF_A_LIFE = 75


def submit_first(count: int, url: str) -> None:
    """Hands in the first ``count`` orders, in one order; begins again with each life."""
    with Client(url, model="echo") as client:
        for number in range(count):
            client.submit(f"order {number}", idempotency_key=f"order {number}")


def ids(broker: Redis, kind: str) -> set[bytes]:
    return {key.rpartition(b":")[2] for key in broker.scan_iter(f"promptmill:{kind}:*", count=1000)}


def check_nothing_is_half_done(broker: Redis) -> int:
    """Every key has its record or its answer, and each of these its key; returns how many there are."""
    held = [broker.hget(key, "record") for key in broker.scan_iter("promptmill:key:*", count=1000)]
    records = ids(broker, "record")  # before the answers: a record may end in between
    assert set(held) == records | ids(broker, "answers")
    assert len(set(held)) == len(held)
    return len(held)


@pytest.mark.parametrize("lives", [12, pytest.param(100, marks=pytest.mark.soak)])
def test_a_submitter_that_is_killed_at_any_moment_and_begins_again_has_each_prompt_run_once(
    any_broker_url: str, tmp_path: Path, lives: int
) -> None:
    context = multiprocessing.get_context("fork")
    chance = random.Random(6)
    counts = []
    killed_half_way = 0
    with (
        client_of(any_broker_url) as broker,
        a_worker(any_broker_url, tmp_path / "log"),
        counted_finishes(broker) as finishes,
    ):
        for _ in range(lives):
            most = min(max(counts, default=0) + MOST_OF_A_LIFE, ORDERS)
            submitter = context.Process(target=submit_first, args=(most, any_broker_url))
            submitter.start()
            wait_until(
                lambda submitter=submitter: (
                    len(ids(broker, "key")) > max(counts, default=0) or not submitter.is_alive()
                ),
                "it got further than the one before",
            )
            time.sleep(chance.uniform(0.0, 0.02))
            submitter.kill()
            submitter.join()
            counts.append(check_nothing_is_half_done(broker))
            killed_half_way += counts[-1] < most
        submit_first(ORDERS, any_broker_url)
        assert check_nothing_is_half_done(broker) == ORDERS
        with Client(any_broker_url, model="echo") as client:
            for number in range(ORDERS):
                result = client.generate(f"order {number}", idempotency_key=f"order {number}")
                assert (result.text, result.attempts) == (f"order {number}", 1)
    assert counts[0] > 0
    assert killed_half_way > 0, "no submitter was killed half-way: this test has shown nothing"
    assert len(finishes) == ORDERS
    assert set(finishes.values()) == {1}


def test_a_submission_of_unknown_outcome_that_is_made_again_with_its_key_runs_once(
    proxy: Proxy, broker: Redis, tcp_url: str, tmp_path: Path
) -> None:
    with (
        a_worker(tcp_url, tmp_path / "log"),
        Client(proxy.url, model="echo", broker_timeout_s=3) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.generate("warm")
        proxy.hold_replies()
        submitting = pool.submit(client.submit, "said twice", idempotency_key="k")
        wait_until(lambda: len(ids(broker, "answers")) == 2, "the worker has answered it")
        with pytest.raises(BrokerUnavailableError) as caught:
            submitting.result(timeout=20)
        proxy.reset()
        proxy.heal()
        result = client.submit("said twice", idempotency_key="k").result(timeout_s=20)
        assert (result.text, result.attempts) == ("said twice", 1)
        assert caught.tb is not None  # who still holds the error holds the submission that was given up
        assert len(ids(broker, "answers")) == 2
        assert not ids(broker, "record")
