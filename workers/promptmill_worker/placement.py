"""Where the parts of a model lie: all on one device, or spread over GPUs, memory and disk (``device=balanced``)."""

from __future__ import annotations

import re
from typing import Any

import torch

from promptmill_worker.free_memory import free_bytes
from promptmill_worker.offload_folder import new_offload_folder
from promptmill_worker.settings import EngineSettings

__all__ = ["is_spread", "placement_options", "shown_placement", "why_not_by_placement"]

#: Share of the free memory that weights may take where they are spread: the cache and each step need some, too.
WEIGHTS_SHARE = 0.8

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def placement_options(settings: EngineSettings, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is told of devices; either way it keeps no second copy of the weights in memory.

    Args:
        settings: ``device``, ``max_memory`` and ``cache_dir`` count.
        device: Where all is computed that lies in no GPU.
    """
    if settings.device != "balanced":
        return {"device_map": {"": device}}
    return {
        "device_map": "auto",
        "max_memory": _max_memory(settings, device),
        "offload_folder": str(new_offload_folder(settings.cache_dir)),
    }


def _max_memory(settings: EngineSettings, device: torch.device) -> dict[int | str, int]:
    limits: dict[int | str, int] = {}
    places = [torch.device("cpu"), device]
    if device.type == "cuda":
        places = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    for place in places:
        free = free_bytes(place)
        if free is not None:
            limits[_key(place)] = int(free * WEIGHTS_SHARE)
    for part in (settings.max_memory or "").split(",") if settings.max_memory else ():
        name, _, size = part.partition("=")
        limits[int(name) if name.isdecimal() else name] = _bytes(size)
    return limits


def _key(place: torch.device) -> int | str:
    return place.index or 0 if place.type == "cuda" else place.type


def _bytes(size: str) -> int:
    number, unit = re.findall(r"[\d.]+|\D+$", size)
    return int(float(number) * _UNITS[unit])


def is_spread(model: Any) -> bool:
    """Whether parts of a model lie elsewhere than the others."""
    return len(_places(model)) > 1


def shown_placement(model: Any) -> str:
    """The device of a model, or all of them: "cuda:0", "cuda:0, cpu, disk"."""
    return ", ".join(_places(model)) or str(model.device)


def why_not_by_placement(model: Any) -> str | None:
    """Why a model can't run in the continuous batch because of where it lies; None if it can.

    Weights that lie in memory or on disk are fetched to the device that computes, layer by layer: that works. With
    several computing devices it does not, as the cache of all layers lies on one.
    """
    computing = [place for place in _places(model) if place not in ("cpu", "disk")]
    if len(computing) > 1:
        return f"it is spread over {' and '.join(computing)}, and the cache of the running batch lies on one device"
    return None


def _places(model: Any) -> list[str]:
    """Where the parts of a model lie, without repetition; empty if all of it was put on one device."""
    placed = getattr(model, "hf_device_map", None) or {}
    names = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in placed.values()]
    return list(dict.fromkeys(names))
