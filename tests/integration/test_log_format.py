"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client
from promptmill.log_format import JsonFormatter


def lines_of(worker: WorkerProcess) -> list[dict[str, str]]:
    """Its log; what Celery tells a terminal, about signals, is on standard output and not in the log."""
    told = ("worker: ", "Waiting gracefully")
    return [json.loads(line) for line in worker.log.splitlines() if line and not line.startswith(told)]


def test_a_workers_and_its_launchers_lines_are_objects_that_name_worker_and_task(
    broker_url: str, tmp_path: Path
) -> None:
    options = ("--log-format", "json", "--worker-name", "w1", "--grace-s", "0", "--echo-tokens-per-s", "10")
    with a_worker(broker_url, tmp_path / "log", *options) as worker, Client(broker_url, model="echo") as client:
        task = client.submit("a marker " * 100)
        wait_until(lambda: client.fleet().workers[0].running, "it runs")
        worker.send(signal.SIGTERM)
        wait_until(lambda: not worker.is_alive, "it has ended")
        lines = lines_of(worker)
    [put_back] = [line for line in lines if line["message"].startswith("put 1 prompts")]
    assert (put_back["level"], put_back["worker"], put_back["task"]) == ("info", "w1", task.id)
    assert put_back["logger"] == "promptmill_worker.claims"
    assert put_back["time"].endswith("+00:00")
    assert not any("task" in line for line in lines if line is not put_back)
    assert "marker" not in worker.log


def test_an_exceptions_traceback_is_a_field() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "file", 1, "it %s", ("failed",), sys.exc_info())
    line = json.loads(JsonFormatter({"worker": lambda: "w", "task": lambda: None}).format(record))
    assert {name: line[name] for name in ("level", "logger", "message", "worker")} == {
        "level": "error",
        "logger": "a.b",
        "message": "it failed",
        "worker": "w",
    }
    assert line["exception"].startswith("Traceback")
    assert "task" not in line
