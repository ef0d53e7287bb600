"""Five minutes of load on three workers: all that watches agrees with what was asked."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port
from monitors import MonitorProcess, a_monitor
from test_prometheus import DASHBOARD, Scraped, configuration
from workers import WORKER, a_process, a_worker, wait_until

from promptmill import Client
from promptmill.embedded import EmbeddedBroker

#: How long prompts are sent, in seconds.
SECONDS = float(os.environ.get("MONITORING_SECONDS", "300"))

MODELS = ("smollm2", "echo")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def send_for(seconds: float, clients: dict[str, Client]) -> dict[str, int]:
    """Maps of both models, by turns, until the time is over; how many prompts of each were answered.

    In chunks of one: of a chunk that is worked off in parts, Flower shows the last part.
    """
    answered = dict.fromkeys(clients, 0)
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        for model, client in clients.items():
            count, words = (8, 12) if model == "smollm2" else (200, 6)
            prompts = ["Count to ten: " + "one " * number for number in range(count)]
            answered[model] += sum(1 for _ in client.map(prompts, max_tokens=words, temperature=0.0, chunk_size=1))
    return answered


def prompts_in_flower(monitor: MonitorProcess) -> dict[str, int]:
    """Prompts of all tasks that have succeeded, by model."""
    counts = dict.fromkeys(MODELS, 0)
    for task in monitor.json("/api/tasks?limit=100000&state=SUCCESS").values():
        if task["result"] != "nothing was left to do":
            shown: dict[str, Any] = ast.literal_eval(task["kwargs"])
            counts[shown["model"]] += shown["prompts"]
    return counts


def test_all_that_watches_agrees(model_path: str, tmp_path: Path) -> None:
    ports, fleet, port = [free_port() for _ in range(3)], free_port(), free_port()
    (tmp_path / "prometheus.yml").write_text(json.dumps(configuration(ports, fleet)))
    prometheus_command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    real = [*WORKER[:4], "--no-restart", "--model", model_path, "--served-name", "smollm2", "--metrics-port"]
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(appendfsync="everysec"))
        worker = stack.enter_context(
            a_process([*real, str(ports[0])], tmp_path / "real", PROMPTMILL_BROKER_URL=broker.url)
        )
        worker.wait_until_ready()
        for number in (1, 2):
            options = ("--metrics-port", str(ports[number]), "--echo-tokens-per-s", "50")
            stack.enter_context(a_worker(broker.url, tmp_path / f"echo{number}", *options))
        options = ("--metrics-port", str(fleet), "--max-tasks", "1000000")
        monitor = stack.enter_context(a_monitor(broker.url, tmp_path / "monitor", *options))
        stack.enter_context(a_process(prometheus_command, tmp_path / "prometheus.log"))
        prometheus = Scraped(f"http://127.0.0.1:{port}")
        wait_until(lambda: prometheus.total("up") == 4, "all are scraped", 60)
        clients = {model: stack.enter_context(Client(broker.url, model=model)) for model in MODELS}
        answered = send_for(SECONDS, clients)
        print(f"answered in {SECONDS:.0f} s: {answered}")

        def by_model(metric: str) -> dict[str, int]:
            counts = dict.fromkeys(MODELS, 0)
            for labels, value in prometheus.query(f"sum by (model_name) ({metric})"):
                counts[labels["model_name"]] = round(value)
            return counts

        wait_until(lambda: by_model("promptmill_request_success_total") == answered, "the workers' metrics agree")
        wait_until(lambda: by_model("promptmill_requests_ended_total") == answered, "the fleet's metrics agree")
        wait_until(lambda: done(monitor.json("/fleet/data")["fleet"]) == answered, "the fleet page agrees")
        shown = subprocess.run(
            [sys.executable, "-m", "promptmill.cli", "status", "--json"],
            env={**os.environ, "PROMPTMILL_BROKER_URL": broker.url},
            capture_output=True,
            check=True,
        )
        assert done(json.loads(shown.stdout)) == answered
        wait_until(lambda: prompts_in_flower(monitor) == answered, "Flower agrees")
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
                assert prometheus.query(expression) or panel["title"] == "GPUs", panel["title"]


def done(fleet: dict[str, Any]) -> dict[str, int]:
    """Prompts that the workers say they have done, by model."""
    counts = dict.fromkeys(MODELS, 0)
    for worker in fleet["workers"]:
        counts[worker["served_name"]] += worker["prompts_done"]
    return counts
