"""What a worker says of itself."""

from __future__ import annotations

from importlib.metadata import version

from promptmill.fleet import WorkerRecord
from promptmill_worker.claims import Bench
from promptmill_worker.gpu_use import gpu_use
from promptmill_worker.room import Room

__all__ = ["SelfPortrait"]


class SelfPortrait:
    """Makes a worker's fleet record. Thread-safe.

    Args:
        bench: What the worker works with.
        room: How much it takes.
    """

    def __init__(self, bench: Bench, room: Room) -> None:
        self._bench = bench
        self._room = room
        #: Steps the engine made before it took tasks.
        self._first_step = bench.engine.steps
        #: The same of tokens.
        self._first_token = bench.engine.tokens
        #: Tokens of prompts and of texts a second, when one last looked.
        self._speeds = (0.0, 0.0)

    def beat(self) -> WorkerRecord:
        """The record of now, with the speeds since the beat before."""
        self._speeds = self._bench.counters.tokens_per_s(self._bench.engine.tokens - self._first_token)
        return self.record()

    def record(self) -> WorkerRecord:
        """The record of now, with the speeds of the last beat."""
        bench, engine, counters = self._bench, self._bench.engine, self._bench.counters
        gpu = gpu_use(engine.info.device)
        read_per_s, made_per_s = self._speeds
        return WorkerRecord(
            name=bench.worker_name,
            served_name=bench.served_name,
            running=engine.running,
            waiting=bench.waiting_room.waiting,
            free=max(0, self._room.free),
            cache_used=engine.cache_used,
            gpu_memory_used_bytes=gpu.memory_used_bytes,
            gpu_memory_total_bytes=gpu.memory_total_bytes,
            gpu_utilization=gpu.utilization,
            prompts_done=counters.prompts_done,
            prompts_failed=counters.prompts_failed,
            prompt_tokens=counters.prompt_tokens,
            completion_tokens=counters.completion_tokens,
            steps=engine.steps - self._first_step,
            tokens_per_s=made_per_s,
            prompt_tokens_per_s=read_per_s,
            last_error=counters.last_error,
            last_error_at=counters.last_error_at,
            uptime_s=counters.uptime_s,
            version=version("promptmill"),
            **engine.info.model_dump(include=set(WorkerRecord.model_fields)),
        )
