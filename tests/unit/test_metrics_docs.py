"""docs/monitoring.md names every metric, and none that there isn't."""

from __future__ import annotations

import re
from pathlib import Path

from promptmill.fleet import WorkerRecord
from promptmill.monitor.exporter import GAUGES
from promptmill.protocol import GenerationResult
from promptmill_worker.metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")

#: Of the exporter, which asks a broker.
OF_THE_BROKER = {"dead_letters", "broker_up", "broker_memory_used_bytes", "broker_memory_max_bytes"}
OF_THE_FLEET = {*GAUGES, *OF_THE_BROKER, "requests_entered_total", "requests_ended_total"}


def worker_metrics() -> set[str]:
    """Those of a worker with a GPU, by what is in its page."""
    record = WorkerRecord(name="w", served_name="m", model="m", gpu_memory_total_bytes=1, gpu_utilization=0.5)
    page = WorkerMetrics(lambda: record, "m")
    page.count(GenerationResult(), 0.0)
    families = re.findall(r"^# TYPE promptmill_(\w+) (\w+)$", page.page().decode(), re.MULTILINE)
    return {name for name, _ in families if not name.endswith("_created")}


def test_the_tables_of_metrics_are_the_codes() -> None:
    documented = re.findall(r"`promptmill_(\w+)`", PAGE)
    assert set(documented) == worker_metrics() | OF_THE_FLEET
