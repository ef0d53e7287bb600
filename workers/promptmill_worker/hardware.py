"""Where a model runs, in which precision, and on how many threads."""

from __future__ import annotations

import os

import torch

from promptmill.errors import ModelLoadError
from promptmill_worker.cores import usable_cores
from promptmill_worker.settings import EngineSettings

__all__ = ["computes_bfloat16", "cpu_threads", "pick_device", "pick_dtype"]


def pick_device(settings: EngineSettings) -> torch.device:
    """The device that the settings name, or the best there is: cuda, then mps, then cpu.

    With "balanced" it is the one that computes what lies in memory or on disk.

    Raises:
        ModelLoadError: the named device is not there.
    """
    asked = settings.device
    if asked in ("auto", "balanced"):
        asked = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(asked)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelLoadError(f"device {asked} is not there: it needs a Mac with an Apple GPU; try device=cpu")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise ModelLoadError(
            f"device {asked} is not there: torch {torch.__version__} sees {count} CUDA devices; check nvidia-smi, "
            "CUDA_VISIBLE_DEVICES and that torch is a CUDA build, or set device=cpu"
        )
    return torch.device("cuda", index)


def pick_dtype(settings: EngineSettings, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The precision to compute in.

    Args:
        settings: ``dtype`` and ``quantization`` count.
        device: Where the model runs.
        stored: The checkpoint's precision.
    """
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)  # type: ignore[no-any-return]
    if settings.quantization == "bnb-8bit":
        return torch.float16  # what its kernels compute in; with another one bitsandbytes logs every product
    if stored == torch.float32:
        return stored
    if device.type == "mps":
        return stored
    if computes_bfloat16(device):
        return stored if device.type == "cuda" else torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere that is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return True


def cpu_threads(settings: EngineSettings) -> int:
    """Threads for torch: as set, else ``OMP_NUM_THREADS``, else the cores that this process has but one.

    More threads than free cores collapse the speed, so both kinds of limits count: the cores a process may run on
    (taskset, cpusets), and the time on them (Docker's and Kubernetes' CPU limits). A core is left to all that isn't
    torch: its threads wait for the slowest of them.
    """
    if settings.threads is not None:
        return settings.threads
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, usable_cores() - 1)
