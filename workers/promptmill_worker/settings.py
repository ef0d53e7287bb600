"""Settings of a worker; see ``promptmill.settings`` for where they come from."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from promptmill.settings import SERVED_NAME_PATTERN, ServedName, Settings, last_part

__all__ = ["EngineSettings", "WorkerSettings"]


class EngineSettings(Settings):
    """What to load, and how to run it."""

    model: str = Field(min_length=1, description="Hub id, folder, or GGUF file")
    engine: Literal["transformers", "echo"] = Field("transformers", description="What generates the text")
    device: str = Field(
        "auto",
        pattern=r"^(auto|balanced|cpu|mps|cuda(:\d+)?)$",
        description="auto, cuda, cuda:1, mps, cpu, or balanced: over all GPUs, memory and disk",
    )
    max_memory: str | None = Field(
        None,
        pattern=r"^(\d+|cpu|mps)=\d+(\.\d+)?[MG]i?B(,(\d+|cpu|mps)=\d+(\.\d+)?[MG]i?B)*$",
        description="With device=balanced, the most weights in each place, as in 0=20GiB,1=20GiB,cpu=64GiB; "
        "default: 80 % of what is free",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Precision of the weights")
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = Field(None, description="Load the weights quantised")
    max_model_len: int | None = Field(None, ge=16, description="Longest prompt and text together, in tokens")
    max_batch: int = Field(64, ge=1, le=4096, description="The most requests in one step of the model")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of torch; default: the cores this process has, but one"
    )
    trust_remote_code: bool = Field(False, description="Run the code that comes with the model")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the hub")
    local_files_only: bool = Field(False, description="Never ask the hub")
    cache_dir: Path = Field(
        Path("~/.cache/promptmill"), description="Where converted models and weights on disk are kept"
    )
    echo_tokens_per_s: float = Field(0.0, ge=0, description="Speed of the echo engine for each request; 0: no wait")


class WorkerSettings(EngineSettings):
    """A worker: its engine, and its place at the queue."""

    served_name: ServedName | None = Field(None, description="Name to serve the model under; default: from the model")
    worker_name: str | None = Field(
        None, pattern=r"^[^/|\n\r]{1,128}$", description="Default: host name and process id"
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="The most prompts taken from the queue at once; default: max_batch and an eighth of it, or 2, more",
    )
    lease_s: float = Field(6.0, gt=0, description="A worker silent for this long has lost its tasks, in seconds")
    beat_s: float = Field(
        2.0,
        gt=0,
        validate_default=True,
        description="How often leases and the fleet record are renewed, in seconds; at most half of lease_s",
    )
    sweep_s: float = Field(1.0, gt=0, description="How often lost tasks are looked for, in seconds")
    sweep_grace_s: float = Field(3.0, gt=0, description="How long a popped task may take to be claimed, in seconds")
    max_deliveries: int = Field(
        3, ge=2, le=100, description="A prompt under which workers die runs alone at this attempt, and then no more"
    )
    measure_s: float = Field(
        1.0,
        ge=0,
        le=60,
        description="How long speed is measured at the start, alone and in a full batch; 0: not at all",
    )
    grace_s: float = Field(30.0, ge=0, description="How long running tasks may go on after SIGTERM, in seconds")
    engine_stall_s: float = Field(
        120.0, gt=0, description="An engine with prompts and no progress for this long is given up, in seconds"
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the health page")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Port of the health page; none without it")
    result_ttl_s: int = Field(
        86_400, ge=1, description="How long the results of plain Celery calls are kept, in seconds"
    )

    @field_validator("beat_s")
    @classmethod
    def _outlives_a_missed_beat(cls, beat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s")  # absent where it was refused itself
        if lease_s is not None and lease_s < 2 * beat_s:
            raise ValueError(f"a lease (lease_s: {lease_s:g}) must outlive a missed beat: at most half of it")
        return beat_s

    @property
    def places(self) -> int:
        """The most prompts taken at once: by default a few more than run, so that one is at hand when another ends.

        More would only wait here where they could go to a worker that is free, and be lost with this one if it dies.
        """
        return self.max_in_flight or self.max_batch + max(2, self.max_batch // 8)

    @property
    def name_of_worker(self) -> str:
        """As set, else of this host and this process."""
        return self.worker_name or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def name_served(self) -> str:
        """The served name: as set, else the last part of the model's path or id, in lower case."""
        if self.served_name is not None:
            return self.served_name
        name = re.sub(r"[^a-z0-9._-]+", "-", last_part(self.model)).strip("-._")
        return name if re.match(SERVED_NAME_PATTERN, name) else "model"
