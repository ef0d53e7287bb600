"""What a real worker tells Prometheus, and what it tells the fleet."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import free_port
from prometheus_client.parser import text_string_to_metric_families
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, TaskFailedError
from promptmill_worker.echo import FAULT_ERROR

MARKER = "marker-in-a-prompt"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def worker(broker_url: str, tmp_path: Path, port: int) -> Iterator[WorkerProcess]:
    options = ("--metrics-port", str(port), "--worker-name", "the-worker")
    speed = ("--echo-tokens-per-s", "100", "--max-batch", "32")
    with a_worker(broker_url, tmp_path / "log", *options, *speed) as worker:
        yield worker


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo") as client:
        yield client


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


def samples(port: int) -> dict[str, float]:
    """Values by name, and by name and own label where a metric has one besides the model's name."""
    found = {}
    for family in text_string_to_metric_families(page(port)):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in ("model_name", "le")}
            label = next(iter(own.values()), "")
            found[f"{sample.name} {label}".strip() if "le" not in sample.labels else ""] = sample.value
    return found


def test_the_counts_are_those_of_what_was_asked(worker: WorkerProcess, client: Client, port: int) -> None:
    prompts = [f"{MARKER} b c", f"{MARKER} d e f", f"{MARKER} g h i j"] * 10
    list(client.map(prompts, max_tokens=4))
    with pytest.raises(TaskFailedError):
        client.generate(FAULT_ERROR)
    seen = samples(port)
    assert seen["promptmill_request_success_total stop"] == 20
    assert seen["promptmill_request_success_total length"] == 10
    assert seen["promptmill_request_failure_total EngineError"] == 1
    assert seen["promptmill_prompt_tokens_total"] == 10 * (3 + 4 + 5)
    assert seen["promptmill_generation_tokens_total"] == 10 * (3 + 4 + 4)
    for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency", "request_time_per_output_token"):
        assert seen[f"promptmill_{name}_seconds_count"] == 30
    assert seen["promptmill_request_generation_tokens_sum"] == 110
    assert seen["promptmill_e2e_request_latency_seconds_sum"] > 30 * 0.02
    assert 30 * 0.009 < seen["promptmill_request_time_per_output_token_seconds_sum"] < 30 * 0.011
    assert (seen["promptmill_num_requests_running"], seen["promptmill_num_requests_waiting"]) == (0, 0)
    assert seen["process_start_time_seconds"] > 0
    assert MARKER not in page(port)


def test_all_ways_to_end_are_told_from_the_start(worker: WorkerProcess, port: int) -> None:
    seen = samples(port)
    assert [seen[f"promptmill_request_success_total {reason}"] for reason in ("stop", "length")] == [0, 0]
    for error in ("EngineError", "InvalidRequestError", "PromptTooLongError", "TaskFailedError"):
        assert seen[f"promptmill_request_failure_total {error}"] == 0


def test_what_runs_and_what_waits_is_told_while_it_does(worker: WorkerProcess, client: Client, port: int) -> None:
    tasks = [client.submit("word " * 500, max_tokens=500) for _ in range(34)]
    wait_until(lambda: samples(port)["promptmill_num_requests_waiting"] == 2, "two wait")
    assert samples(port)["promptmill_num_requests_running"] == 32
    for task in tasks:
        task.cancel()


def test_the_speed_is_told_while_long_texts_are_made(worker: WorkerProcess, client: Client) -> None:
    tasks = [client.submit("word " * 3000, max_tokens=3000) for _ in range(4)]
    wait_until(lambda: 200 < client.fleet().workers[0].tokens_per_s < 500, "four times a hundred words a second")
    for task in tasks:
        task.cancel()


def test_the_fleet_knows_the_last_error_without_the_prompt(worker: WorkerProcess, client: Client) -> None:
    with pytest.raises(TaskFailedError):
        client.generate(FAULT_ERROR)
    wait_until(lambda: client.fleet().workers[0].last_error, "it is told")
    record = client.fleet().workers[0]
    assert record.last_error.startswith("EngineError: ")
    assert FAULT_ERROR not in record.last_error
    assert record.last_error_at is not None
    assert client.fleet().workers[0].prompts_failed == 1
