"""What a figure was measured on, and how figures are summed up."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

__all__ = ["milliseconds", "quantile", "ratio", "setting", "spread"]


def setting(*packages: str) -> dict[str, Any]:
    """The machine and the versions of ``packages``."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("promptmill", *packages)},
    }


def _processor() -> str:
    """As the kernel calls it; the architecture where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(": ")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def quantile(values: Iterable[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of all ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def milliseconds(seconds: float) -> float:
    """Rounded to a hundredth of one."""
    return round(1000 * seconds, 2)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values)), "least": round(min(values)), "most": round(max(values))}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of what neighbouring rounds' figures are to each other."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)
