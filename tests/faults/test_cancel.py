"""Ending prompts early: by cancelling, by Celery's revoke, by a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from redis import Redis
from submitter import Submitter
from workers import a_worker, wait_until

from promptmill import Client, PromptmillError, TaskCancelledError, TaskExpiredError, TaskStatus
from promptmill.names import Names

NAMES = Names("promptmill:")

#: Ten minutes, at 10 words a second.
LONG = "word " * 6000
TIMED = ("--echo-tokens-per-s", "10")
#: A worker that hears of nothing by its beat, since there is none while the test runs.
DEAF = (*TIMED, "--beat-s", "30", "--lease-s", "90")


@pytest.fixture
def client(tcp_url: str) -> Iterator[Client]:
    with Client(tcp_url, model="echo") as client:
        yield client


@pytest.fixture
def app(tcp_url: str) -> Iterator[Celery]:
    app = Celery("foreign", broker=tcp_url, backend=tcp_url, set_as_current=False)
    yield app
    app.close()


def is_idle(client: Client) -> bool:
    """Whether no worker has a prompt in its engine, as of its last beat."""
    return sum(worker.running for worker in client.fleet().workers) == 0


def no_record_is_left(broker: Redis) -> bool:
    return not list(broker.scan_iter(NAMES.record("*")))


def has_status(client: Client, task_id: str, status: TaskStatus) -> bool:
    return client.task(task_id).status() is status


# Cancelling.


def test_a_running_prompt_is_cancelled_at_once(tcp_url: str, client: Client, tmp_path: Path) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF, "--max-in-flight", "1"):
        first, second = client.submit(LONG), client.submit("word")
        wait_until(lambda: first.status() is TaskStatus.RUNNING, "the first runs")
        assert second.status() is TaskStatus.QUEUED
        assert first.cancel() is True
        # It makes room in the engine, or the second would wait for ten minutes; and the next beat is far.
        assert second.result(timeout_s=10).text == "word"
        with pytest.raises(TaskCancelledError):
            first.result(timeout_s=5)
        assert first.cancel() is False


def test_one_prompt_of_a_chunk_is_cancelled_and_its_neighbours_go_on(
    tcp_url: str, client: Client, broker: Redis, submitter: Submitter, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *TIMED):
        ids = submitter.submit(["word " * 30, LONG, "word " * 31], chunk_size=3)
        wait_until(lambda: has_status(client, ids[1], TaskStatus.RUNNING), "all run")
        assert client.task(ids[1]).cancel() is True
        assert has_status(client, ids[1], TaskStatus.CANCELLED)
        assert [len(client.task(ids[number]).result(timeout_s=20).text.split()) for number in (0, 2)] == [30, 31]
        wait_until(lambda: is_idle(client), "the engine is empty")
        assert no_record_is_left(broker)


def test_what_was_cancelled_while_no_worker_lived_is_not_run_by_one_started_later(
    tcp_url: str, client: Client, submitter: Submitter, tmp_path: Path
) -> None:
    ids = submitter.submit(["word", LONG, "word"], chunk_size=3)
    alone = client.submit(LONG)
    assert client.task(ids[1]).cancel()
    assert alone.cancel()
    with a_worker(tcp_url, tmp_path / "log", *TIMED, "--max-in-flight", "2"):
        assert [client.task(ids[number]).result(timeout_s=20).text for number in (0, 2)] == ["word", "word"]
        assert client.generate("after").text == "after"


def test_leaving_a_map_early_frees_the_workers_at_once(tcp_url: str, client: Client, tmp_path: Path) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF):
        results = client.map(["word", *[LONG] * 63], ordered=False, chunk_size=8)
        assert next(results).text == "word"
        results.close()
        assert client.generate("after").text == "after"


def test_ctrl_c_in_the_command_line_cancels_on_the_broker(
    tcp_url: str, client: Client, broker: Redis, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(f'{{"prompt": "{LONG}", "max_tokens": 6000}}\n' * 3)
    command = [sys.executable, "-m", "promptmill.cli", "batch", str(questions), "--output", str(tmp_path / "answers")]
    environment = {**os.environ, "PROMPTMILL_BROKER_URL": tcp_url, "PROMPTMILL_MODEL": "echo"}
    with a_worker(tcp_url, tmp_path / "log", *TIMED), (tmp_path / "batch.log").open("wb") as log:
        batch = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_until(lambda: client.fleet().workers[0].running == 3, "all run", 30)
        batch.send_signal(signal.SIGINT)
        assert batch.wait(20) == 130
        wait_until(lambda: is_idle(client), "the engine is empty")
        assert no_record_is_left(broker)


# Celery's revoke.


def send(app: Celery, prompt: str) -> str:
    return str(app.send_task("promptmill.generate", args=[prompt], queue="promptmill.echo").id)


def revoked(app: Celery) -> set[str]:
    """What a worker knows to be revoked."""
    replies = app.control.inspect(timeout=5, limit=1).revoked() or {}
    return {task_id for task_ids in replies.values() for task_id in task_ids}


def test_a_running_call_is_revoked_with_terminate(
    tcp_url: str, app: Celery, client: Client, broker: Redis, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF, "--max-in-flight", "1"):
        call = send(app, LONG)
        wait_until(lambda: has_status(client, call, TaskStatus.RUNNING), "it runs")
        app.control.revoke(call, terminate=True)
        with pytest.raises(TaskRevokedError):
            app.AsyncResult(call).get(timeout=10)
        assert client.generate("after").text == "after"
        wait_until(lambda: no_record_is_left(broker), "its record is gone")
        assert app.AsyncResult(call).state == "REVOKED"
        assert has_status(client, call, TaskStatus.CANCELLED)


def test_a_task_of_the_client_is_revoked_with_terminate(
    tcp_url: str, app: Celery, client: Client, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF):
        task = client.submit(LONG)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        app.control.revoke(task.id, terminate=True)
        with pytest.raises(TaskCancelledError):
            task.result(timeout_s=10)


def test_tasks_that_are_revoked_in_the_queue_do_not_go_round_and_round(
    tcp_url: str, app: Celery, client: Client, broker: Redis, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF, "--max-in-flight", "1"):
        first = client.submit(LONG)
        wait_until(lambda: first.status() is TaskStatus.RUNNING, "the first runs")
        task, call = client.submit("revoked"), send(app, "revoked")
        app.control.revoke([task.id, call])
        wait_until(lambda: revoked(app) >= {task.id, call}, "the worker knows")
        first.cancel()
        with pytest.raises(TaskCancelledError):
            task.result(timeout_s=10)
        with pytest.raises(TaskRevokedError):
            app.AsyncResult(call).get(timeout=10)
        wait_until(lambda: no_record_is_left(broker), "no record is left")
        assert not broker.llen("promptmill.echo")


# Deadlines.


def test_a_prompt_that_expires_in_the_engine_keeps_what_was_generated(
    tcp_url: str, client: Client, broker: Redis, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *DEAF, "--max-in-flight", "1"):
        task = client.submit(LONG, max_tokens=5000, timeout_s=5)
        with pytest.raises(TaskExpiredError) as caught:
            task.result(timeout_s=20)
        assert 5 <= len(caught.value.partial_text.split()) <= 90
        assert set(caught.value.partial_text.split()) == {"word"}
        assert task.status() is TaskStatus.EXPIRED
        assert client.generate("after").text == "after"
        assert no_record_is_left(broker)


def test_a_prompt_that_expires_in_the_queue_is_not_run(tcp_url: str, client: Client, tmp_path: Path) -> None:
    with a_worker(tcp_url, tmp_path / "log", *TIMED, "--max-in-flight", "1"):
        first = client.submit("word " * 40)
        task = client.submit("late", timeout_s=1)
        with pytest.raises(TaskExpiredError) as caught:
            task.result(timeout_s=10)
        assert caught.value.partial_text == ""
        assert first.result(timeout_s=20).attempts == 1
        assert sum(worker.prompts_done for worker in client.fleet().workers) <= 1


def test_with_no_worker_alive_the_client_itself_says_that_a_task_has_expired(client: Client, broker: Redis) -> None:
    task = client.submit("nobody comes", timeout_s=1)
    with pytest.raises(TaskExpiredError):
        task.result(timeout_s=15)
    assert no_record_is_left(broker)


def test_with_no_worker_alive_a_handle_by_id_says_it_too(tcp_url: str, client: Client) -> None:
    ids = [client.submit("nobody comes", timeout_s=0.5).id for _ in range(2)]
    with Client(tcp_url, model="echo") as another:
        wait_until(lambda: has_status(another, ids[0], TaskStatus.EXPIRED), "it is expired")
        with pytest.raises(PromptmillError) as caught:
            another.task(ids[1]).result(timeout_s=10)
        assert isinstance(caught.value, TaskExpiredError)


def test_a_task_whose_only_worker_died_with_it_expires_all_the_same(
    tcp_url: str, client: Client, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *TIMED, "--lease-s", "1", "--beat-s", "0.3") as worker:
        task = client.submit(LONG, timeout_s=4)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        worker.send(signal.SIGKILL)
        with pytest.raises(TaskExpiredError):
            task.result(timeout_s=30)
