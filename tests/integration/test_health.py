"""The health page of a real worker, and a real worker whose engine hangs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from brokers import free_port
from workers import a_worker, wait_until

from promptmill import Client
from promptmill_worker.echo import FAULT_HANG


def page(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Status and content of a health page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()) if error.code != 404 else {}


def test_a_worker_that_takes_prompts_is_well_and_ready(broker_url: str, tmp_path: Path) -> None:
    port = free_port()
    with a_worker(broker_url, tmp_path / "log", "--metrics-port", str(port)):
        wait_until(lambda: page(port, "/readyz")[0] == 200, "ready")
        assert page(port, "/healthz") == (200, {"well": True, "troubles": []})
        assert page(port, "/other")[0] == 404


def test_a_port_that_is_taken_is_said_and_the_worker_works(broker_url: str, tmp_path: Path) -> None:
    port = str(free_port())
    with (
        a_worker(broker_url, tmp_path / "one", "--metrics-port", port, "--served-name", "one"),
        a_worker(broker_url, tmp_path / "two", "--metrics-port", port, "--served-name", "two") as second,
        Client(broker_url, model="two") as client,
    ):
        assert client.generate("still here").text
        assert "no health page" in second.log


def test_a_worker_whose_engine_hangs_ends_and_another_takes_over(broker_url: str, tmp_path: Path) -> None:
    with (
        a_worker(broker_url, tmp_path / "one", "--engine-stall-s", "2", "--worker-name", "one") as hung,
        Client(broker_url, model="echo") as client,
    ):
        task = client.submit(FAULT_HANG)
        assert hung.wait(30) == 1
        assert "no progress" in hung.log
        with a_worker(broker_url, tmp_path / "two", "--engine-stall-s", "60"):
            wait_until(lambda: task.status() == "running", "it runs elsewhere", 20)
            task.cancel()
