"""Figures of a comparison, and their table.

python benchmarks/peers/report.py benchmarks/results/peers-mixed.json
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contest import Run

__all__ = ["markdown", "report"]

#: What the others are compared with.
OURS = ("queue", "in-process")


def report(runs: dict[str, list[Run]], shares: dict[str, int], setting: dict[str, Any]) -> dict[str, Any]:
    """Figures of each round, in the rounds' order, and what they were measured on.

    Args:
        runs: Of each way.
        shares: Name of a way that answered one job in so many.
        setting: What they had in common.
    """
    first, *_ = runs.values()
    return {
        "ways": {name: _figures(of_way, first[0].texts[:: shares.get(name, 1)]) for name, of_way in runs.items()},
        **setting,
        "tokens": first[0].tokens,
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("promptmill", "torch", "transformers", "celery")},
    }


def markdown(figures: dict[str, Any]) -> str:
    """A row for each way: medians with the least and the most, and what ours are to it."""
    ways: dict[str, dict[str, Any]] = figures["ways"]
    ours = [name for name in OURS if name in ways]
    titles = ["way", "tokens/s", *(f"{name} ÷ it" for name in ours), "latency, median", "99th percentile", "same texts"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, of_way in ways.items():
        speeds = of_way["tokens_per_s"]
        cells = [
            name,
            f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})",
            *(f"{_ratio(ways[own]['tokens_per_s'], speeds):.2f}" for own in ours),
            *(f"{statistics.median(of_way[share]):.1f} s" for share in ("p50_s", "p99_s")),
            f"{of_way['same_texts']} of {of_way['prompts']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(runs: list[Run], reference: list[str]) -> dict[str, Any]:
    return {
        "tokens_per_s": [round(run.tokens_per_s, 1) for run in runs],
        "p50_s": [round(run.latency_s(0.5), 3) for run in runs],
        "p99_s": [round(run.latency_s(0.99), 3) for run in runs],
        "prompts": len(reference),
        "same_texts": sum(a == b for a, b in zip(runs[0].texts, reference, strict=True)),
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    # Of neighbours in time, as the machine's speed may change from round to round.
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _processor() -> str:
    """As the kernel calls it; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        about = {name.strip(): value for name, _, value in (line.partition(": ") for line in lines)}
        return f"{about['model name']}, family {about['cpu family']}, model {about['model']}"
    except (OSError, KeyError):
        return platform.machine()


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
