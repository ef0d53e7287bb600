"""CPU time of processes, as Linux counts it."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

__all__ = ["cpu_s"]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_s(*roots: int) -> float:
    """CPU time of processes and of all that live below them, user and system, in seconds."""
    below: dict[int, list[int]] = defaultdict(list)
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        process_id = int(stat.parent.name)
        below[int(fields[1])].append(process_id)
        used[process_id] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
    found, left = 0.0, list(roots)
    while left:
        process_id = left.pop()
        found += used.get(process_id, 0.0)
        left += below[process_id]
    return found
