"""How much of its GPU is in use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GpuUse", "gpu_use"]


@dataclass(frozen=True)
class GpuUse:
    """One GPU, whoever uses it."""

    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    #: Share of the time in which it computes, 0 to 1; None without NVML (the package nvidia-ml-py).
    utilization: float | None = None


def gpu_use(device: str) -> GpuUse:
    """Of the first GPU that ``device`` names, "cuda:0" or "cuda:0, cpu"; all zero if it names none."""
    first = device.partition(",")[0]
    if not first.startswith("cuda"):
        return GpuUse()
    import torch  # where there is a device, it is loaded

    free, total = torch.cuda.mem_get_info(first)
    try:
        utilization = torch.cuda.utilization(first) / 100
    except (ModuleNotFoundError, RuntimeError):
        utilization = None
    return GpuUse(total - free, total, utilization)
