"""The cores that this process has. Without torch: the launcher asks, too."""

from __future__ import annotations

import math
import os

from promptmill_worker.cgroup import cpu_quota

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """How many cores this process may run on, or less if it has not so much time on them."""
    # Not on macOS.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.floor(cpu_quota() or cores)))
