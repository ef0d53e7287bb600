"""Queues and brokers that are full: submissions are refused or wait, answers are written, nothing locks up."""

from __future__ import annotations

from pathlib import Path

import pytest
from brokers import client_of
from workers import a_worker, wait_until

from promptmill import Client, InvalidRequestError, QueueFullError
from promptmill.embedded import EmbeddedBroker
from promptmill.task import Task, TaskStatus


def test_a_full_queue_refuses_a_prompt_with_both_numbers(broker_url: str) -> None:
    with Client(broker_url, model="echo", max_queued_prompts=2) as client:
        for _ in range(2):
            client.submit("queued")
        with pytest.raises(QueueFullError, match=r"queue 'echo' holds 2 prompts.*limit of 2: wait, or raise") as caught:
            client.submit("too many")
        assert (caught.value.queued_prompts, caught.value.limit_prompts) == (2, 2)
        client.submit("another model has its own limit", model="other")


def test_submit_waits_for_a_full_queue_as_long_as_it_is_told(broker_url: str, tmp_path: Path) -> None:
    settings = {"max_queued_prompts": 1, "full_queue_wait_s": 60.0}
    with Client(broker_url, model="echo", **settings) as client:
        client.submit("first")
        with a_worker(broker_url, tmp_path / "log", ready=False):
            assert client.generate("second").text == "second"


def test_a_map_waits_for_room_and_ends_right(broker_url: str, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(100)]
    with (
        a_worker(broker_url, tmp_path / "log", "--echo-tokens-per-s", "50"),
        Client(broker_url, model="echo", max_queued_prompts=16) as client,
    ):
        assert [result.text for result in client.map(prompts, chunk_size=8)] == prompts
        with pytest.raises(QueueFullError, match="holds 0 prompts, 17 more"):
            list(client.map(prompts, chunk_size=17))


def test_a_prompt_beyond_the_size_limit_is_not_sent(broker_url: str) -> None:
    with Client(broker_url, model="echo", max_request_bytes=1000) as client:
        with pytest.raises(InvalidRequestError, match="the limit is 1,000"):
            client.submit("x" * 1000)
        assert client_of(broker_url).dbsize() == 0


def test_results_go_after_their_time(broker_url: str, tmp_path: Path) -> None:
    with a_worker(broker_url, tmp_path / "log"), Client(broker_url, model="echo", result_ttl_s=1) as client:
        task = client.submit("short-lived")
        assert task.result(timeout_s=10).text
        wait_until(lambda: client.task(task.id).status() == "unknown", "its result is gone")


def submit_without_end(client: Client, tasks: list[Task]) -> None:
    while True:
        tasks.append(client.submit(f"{len(tasks)} " + "x" * 100_000))


def test_a_broker_near_its_maxmemory_refuses_submissions_and_answers_what_it_has(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(appendfsync="no", maxmemory=24_000_000) as broker,
        Client(broker.url, model="echo") as client,
        client_of(broker.url) as redis,
    ):
        tasks: list[Task] = []
        with pytest.raises(QueueFullError, match="memory is more than 75 % full"):
            submit_without_end(client, tasks)
        assert redis.info("memory")["used_memory"] < 0.9 * 24_000_000
        assert len(tasks) > 100
        with a_worker(broker.url, tmp_path / "log", "--max-in-flight", "8", "--echo-tokens-per-s", "1") as worker:
            wait_until(lambda: sum(task.status() is TaskStatus.RUNNING for task in tasks) == 8, "eight run")
            # Somebody else fills the rest: now the broker refuses whatever asks for more memory.
            fillers = [f"filler{number}" for number in range(100)]
            for filler in fillers:
                if redis.info("memory")["used_memory"] < 24_000_000:
                    redis.setrange(filler, 500_000, "x")
            wait_until(lambda: sum(task.status() is TaskStatus.SUCCEEDED for task in tasks) >= 8, "they are answered")
            redis.delete(*fillers)
            answers = [task.result(timeout_s=60).text.split()[0] for task in tasks]
            assert answers == [str(number) for number in range(len(tasks))]
            assert "x" * 100 not in worker.log
