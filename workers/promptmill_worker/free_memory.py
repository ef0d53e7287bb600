"""How much memory is free on a device."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from promptmill_worker.cgroup import memory_left_bytes

__all__ = ["free_bytes"]

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Free memory of ``device``, in bytes; None where the system does not tell.

    Of a CPU: what programs can still get without swapping, within the limits of this process's cgroups.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    limits = [memory_left_bytes(), _available_bytes()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available_bytes() -> int | None:
    if not MEMINFO.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
