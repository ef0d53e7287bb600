"""Figures and table of ``against_queues.py``.

python benchmarks/queues/queue_table.py benchmarks/results/queues.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["markdown", "ratios"]

MAP, ONE_BY_ONE, CELERY = "promptmill, map", "promptmill, one by one", "celery"


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """What is asked of this comparison: medians of what the turns of one round are to each other."""
    speeds = {name: _speeds(results, name, "answered_s") for name in results["many"]}
    others = [of_queue for name, of_queue in speeds.items() if name not in (MAP, ONE_BY_ONE)]
    fastest = [max(of_round) for of_round in zip(*others, strict=True)]
    found = {}
    if fastest:
        found["chunks ÷ the fastest of the others"] = _ratio(speeds[MAP], fastest)
    if CELERY in speeds:
        found["one by one ÷ celery"] = _ratio(speeds[ONE_BY_ONE], speeds[CELERY])
    return found


def markdown(results: dict[str, Any]) -> str:
    """All ways in one table, the ratios below."""
    lines = [
        "| queue | enqueued/s | enqueued and answered/s | one at a time, median | 99th percentile |",
        "|---|---|---|---|---|",
    ]
    for name in results["many"]:
        version = results["queues"].get(name)
        cells = [
            name if version is None else f"{name} {version}",
            _spread(_speeds(results, name, "submitted_s")),
            _spread(_speeds(results, name, "answered_s")),
            *_alone(results["alone"].get(name)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {what}: {value:.2f}" for what, value in ratios(results).items())]
    return "\n".join(lines)


def _speeds(results: dict[str, Any], name: str, until: str) -> list[float]:
    return [results["tasks"] / of_round[until] for of_round in results["many"][name]]


def _spread(speeds: Sequence[float]) -> str:
    return f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"


def _alone(rounds: list[dict[str, float]] | None) -> list[str]:
    if rounds is None:
        return ["", ""]
    return [f"{statistics.median(of_round[share] for of_round in rounds):.2f} ms" for share in ("median_ms", "p99_ms")]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
