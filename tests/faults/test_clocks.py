"""Machines whose clocks differ by minutes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from workers import WORKER, a_process, a_worker, wait_until

from promptmill import Client, TaskExpiredError, TaskStatus

#: Imported by Python itself at its start: moves the wall clock of a process.
SITECUSTOMIZE = """
import os, time
_now = time.time
time.time = lambda: _now() + float(os.environ["CLOCK_SHIFT_S"])
"""


@pytest.mark.parametrize("shift_s", [600, -600])
def test_a_worker_whose_clock_is_ten_minutes_off_does_its_work_and_is_found_dead_in_time(
    broker_url: str, tmp_path: Path, shift_s: int
) -> None:
    (tmp_path / "shifted").mkdir()
    (tmp_path / "shifted" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    off = {"PYTHONPATH": str(tmp_path / "shifted"), "CLOCK_SHIFT_S": str(shift_s), "PROMPTMILL_BROKER_URL": broker_url}
    command = [*WORKER, "--no-restart", "--echo-tokens-per-s", "10", "--worker-name", "off"]
    with Client(broker_url, model="echo") as client, a_process(command, tmp_path / "log", **off) as worker:
        worker.wait_until_ready()
        assert client.generate("right").worker == "off"
        wait_until(lambda: client.fleet().workers, "it is in the fleet")
        with pytest.raises(TaskExpiredError):
            client.generate("word " * 600, max_tokens=600, timeout_s=1)
        task = client.submit("word " * 600, max_tokens=600)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        with a_worker(broker_url, tmp_path / "two", "--worker-name", "two"):
            assert task.status() is TaskStatus.RUNNING, "the other worker has taken a living one's prompt"
            worker.send(signal.SIGKILL)
            assert task.result(timeout_s=20).worker == "two"
