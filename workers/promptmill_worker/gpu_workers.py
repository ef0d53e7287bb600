"""What sets the workers of one machine apart where there is one a GPU."""

from __future__ import annotations

import os
import socket
from typing import Any

from promptmill.errors import InvalidSettingError
from promptmill.settings import environment_name
from promptmill_worker.cores import usable_cores
from promptmill_worker.gpus import VISIBLE, Gpu, pick_gpus
from promptmill_worker.settings import WorkerSettings

__all__ = ["workers_of"]


def workers_of(asked: str, settings: WorkerSettings, options: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Each worker's name on this machine, and what its environment has besides.

    Args:
        asked: See ``gpus.pick_gpus``.
        settings: What all of them are started with.
        options: The command line's, which ``settings`` were read from.

    Raises:
        InvalidSettingError: a GPU is not there, or the settings don't go together with one worker a GPU.
    """
    if settings.device not in ("auto", "cuda"):
        raise InvalidSettingError(
            f"device: {settings.device!r} and gpus don't go together: each worker has one GPU for itself, its cuda"
        )
    gpus = pick_gpus(asked, os.environ)
    workers = {}
    for gpu in gpus:
        own = _own_settings(gpu, len(gpus), settings)
        WorkerSettings.read(**{**options, **own})  # a name too long, or a port beyond the last one
        workers[f"gpu{gpu.number}"] = {
            VISIBLE: gpu.device,
            **{environment_name(field): str(value) for field, value in own.items()},
        }
    return workers


def _own_settings(gpu: Gpu, workers: int, settings: WorkerSettings) -> dict[str, Any]:
    own: dict[str, Any] = {
        "device": "cuda",
        "worker_name": f"{settings.worker_name or socket.gethostname()}-gpu{gpu.number}",
        "threads": settings.threads or max(1, usable_cores() // workers),
    }
    if settings.metrics_port is not None:
        own["metrics_port"] = settings.metrics_port + gpu.position
    return own
