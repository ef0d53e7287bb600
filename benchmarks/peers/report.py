"""Figures of a comparison."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from contest import Run

__all__ = ["report"]


def report(runs: dict[str, list[Run]], setting: dict[str, Any]) -> dict[str, Any]:
    """Medians, spread, and what each way is to the first.

    Args:
        runs: Of each way.
        setting: What they had in common.
    """
    first, *_ = runs.values()
    return {
        "ways": {name: _figures(of_way, first) for name, of_way in runs.items()},
        **setting,
        "prompts": len(first[0].texts),
        "tokens": first[0].tokens,
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("promptmill", "torch", "transformers", "celery")},
    }


def _figures(runs: list[Run], first: list[Run]) -> dict[str, Any]:
    speeds = [run.tokens_per_s for run in runs]
    return {
        "tokens_per_s": {
            "median": round(statistics.median(speeds), 1),
            "least": round(min(speeds), 1),
            "most": round(max(speeds), 1),
        },
        # Of neighbours in time, as the machine's speed may change from round to round.
        "ratio": _median(runs, first, lambda run: run.tokens_per_s),
        "latency_s": {
            name: round(statistics.median(run.latency_s(share) for run in runs), 3)
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
        "same_texts": sum(a == b for a, b in zip(runs[0].texts, first[0].texts, strict=True)),
    }


def _median(runs: list[Run], others: list[Run], of: Callable[[Run], float]) -> float:
    return round(statistics.median(of(run) / of(other) for run, other in zip(runs, others, strict=True)), 3)


def _processor() -> str:
    """As the kernel calls it; the architecture where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(": ")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
