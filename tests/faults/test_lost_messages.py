"""What the queue loses or doubles, the ledger heals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery
from finishes import counted_finishes
from proxy import Proxy
from redis import Redis
from submitter import Submitter
from workers import a_process, a_worker, wait_until

from promptmill import Client
from promptmill.names import Priority

SOAK = pytest.param(20, marks=pytest.mark.soak)


#: Where Celery's transport keeps the queue of what Submitter submits.
QUEUE_LIST = f"promptmill.echo\x06\x16{Priority.NORMAL}"


def numbered(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def test_stock_celery_loses_a_message_that_is_popped_into_a_dead_connection(
    proxy: Proxy, tcp_url: str, broker: Redis, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "celery", "-A", "stock_app", "worker", "--pool", "solo", "--loglevel", "info"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    app = Celery("caller", broker=tcp_url, backend=tcp_url, set_as_current=False)
    with a_process(command, tmp_path / "log", STOCK_BROKER_URL=proxy.url, PYTHONPATH=path) as worker:
        worker.wait_until_ready()
        lost = 0
        for _ in range(3):
            assert app.send_task("stock.echo", ["warm"]).get(timeout=20) == "warm"
            time.sleep(0.3)  # idle in BRPOP
            proxy.hold()
            calls = [app.send_task("stock.echo", ["hello"]) for _ in range(5)]
            time.sleep(0.3)
            proxy.reset()
            proxy.heal()
            wait_until(lambda: not broker.llen("celery") and not broker.hlen("unacked"), "no message is left", 30)
            lost += sum(not call.ready() for call in calls)
        assert lost
    app.close()


@pytest.mark.parametrize("rounds", [3, SOAK])
def test_a_prompt_whose_message_is_popped_into_a_dead_connection_is_answered(
    proxy: Proxy, submitter: Submitter, tmp_path: Path, rounds: int
) -> None:
    with a_worker(proxy.url, tmp_path / "log") as worker:
        for _ in range(rounds):
            submitter.submit(["warm"])
            submitter.wait(20)
            time.sleep(0.3)  # idle in BRPOP
            proxy.hold()
            submitter.submit(numbered(5))
            time.sleep(0.3)
            proxy.reset()
            proxy.heal()
            submitter.wait(15)
        submitter.check()
        assert "swept: pointer" in worker.log, "nothing was lost: this test has shown nothing"


def test_prompts_whose_queue_was_deleted_or_purged_are_answered(
    submitter: Submitter, broker: Redis, tcp_url: str, tmp_path: Path
) -> None:
    submitter.submit(numbered(40), chunk_size=4)
    assert broker.llen(QUEUE_LIST) == 10
    broker.delete(QUEUE_LIST)
    submitter.submit(numbered(20))
    purge = [sys.executable, "-m", "celery", "-A", "promptmill", "purge", "--force", "--queues", "promptmill.echo"]
    environment = {**os.environ, "PROMPTMILL_BROKER_URL": tcp_url}
    purged = subprocess.run(purge, capture_output=True, text=True, timeout=60, env=environment)
    assert "Purged 20 messages" in purged.stdout, purged.stderr
    assert not broker.llen(QUEUE_LIST)
    with a_worker(tcp_url, tmp_path / "log"):
        submitter.wait(30)
    assert {result.attempts for result in submitter.check().values()} == {1}


def test_a_message_that_is_published_twice_makes_one_answer(
    submitter: Submitter, broker: Redis, tcp_url: str, tmp_path: Path
) -> None:
    submitter.submit(numbered(30))
    submitter.submit(numbered(30), chunk_size=10)
    messages = broker.lrange(QUEUE_LIST, 0, -1)
    broker.lpush(QUEUE_LIST, *messages)
    slow = ("--echo-tokens-per-s", "2")  # a prompt takes a second: all come in while their doubles run
    with (
        a_worker(tcp_url, tmp_path / "one", *slow, ready=False) as one,
        a_worker(tcp_url, tmp_path / "two", *slow, ready=False) as two,
        counted_finishes(broker) as finishes,
    ):
        one.wait_until_ready()
        two.wait_until_ready()
        submitter.wait(30)
        broker.rpush(QUEUE_LIST, *messages)
        wait_until(lambda: not broker.llen(QUEUE_LIST), "the late ones are looked at, too")
        submitter.submit(["after them"])
        submitter.wait(30)
    assert {result.attempts for result in submitter.check().values()} == {1}
    assert len(finishes) == 61
    assert set(finishes.values()) == {1}


def test_a_prompt_whose_entering_had_an_unknown_outcome_is_entered_once(
    proxy: Proxy, broker: Redis, tcp_url: str, tmp_path: Path
) -> None:
    with (
        a_worker(tcp_url, tmp_path / "log"),
        Client(proxy.url, model="echo", broker_timeout_s=20) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.generate("warm")
        proxy.hold_replies()
        submitting = pool.submit(client.submit, "said twice")
        wait_until(lambda: len(list(broker.scan_iter("promptmill:answers:*"))) == 2, "the worker has answered it")
        assert not submitting.done()
        proxy.reset()
        proxy.heal()
        assert submitting.result(timeout=20).result(timeout_s=20).text == "said twice"
        assert len(list(broker.scan_iter("promptmill:answers:*"))) == 2
        assert not list(broker.scan_iter("promptmill:record:*"))
