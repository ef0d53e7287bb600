"""Who serves what: the records that workers publish, and what is queued for them."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import redis
from pydantic import BaseModel, ConfigDict, computed_field

from promptmill.names import Names, Priority, lane_name, lanes_of, list_name, model_of_queue, queue_name
from promptmill.transport import Transport

__all__ = ["Fleet", "ModelStatus", "WorkerRecord", "publish_worker", "read_fleet", "withdraw_worker"]


class WorkerRecord(BaseModel):
    """What a worker says of itself at each beat."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: Served name: what clients ask for, and what the queue is called after.
    served_name: str
    #: Hub id, folder or file.
    model: str
    engine: str = ""
    #: Why it runs in static batches, if it does.
    reason: str = ""
    device: str = ""
    precision: str = ""
    attention: str = ""
    context_tokens: int = 0
    cache_tokens: int = 0
    max_batch: int = 0
    parameters: int = 0
    #: Size of the loaded weights, in bytes.
    weights_bytes: int = 0
    #: Whether it takes messages; None: it does without a template.
    chat_template: bool | None = None
    #: Generated tokens a second, measured at the start: of one prompt alone, and of max_batch together.
    tokens_per_s_alone: float = 0.0
    tokens_per_s_full: float = 0.0
    #: Prompts in the engine now.
    running: int = 0
    #: Share of the cache that is in use, 0 to 1.
    cache_used: float = 0.0
    #: Memory of the GPU that is in use by anybody, and all that it has, in bytes; 0 without one.
    gpu_memory_used_bytes: int = 0
    gpu_memory_total_bytes: int = 0
    #: Share of the time in which the GPU computes, 0 to 1; None where it can't be told.
    gpu_utilization: float | None = None
    #: Prompts that it has claimed, and that wait for a slot of the engine.
    waiting: int = 0
    #: Prompts that the worker would take besides.
    free: int = 0
    prompts_done: int = 0
    prompts_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Steps the engine has made; completion_tokens over steps is the average batch.
    steps: int = 0
    #: Generated tokens a second, since the beat before.
    tokens_per_s: float = 0.0
    #: The same of tokens of prompts.
    prompt_tokens_per_s: float = 0.0
    #: The last prompt's error that was ours to answer for, and when it was, in seconds since 1970.
    last_error: str = ""
    last_error_at: float | None = None
    uptime_s: float = 0.0
    version: str = ""


class ModelStatus(BaseModel):
    """One model: its queue and its workers together."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: Records that wait (a chunk of prompts counts as one); without plain Celery calls that no worker has taken yet.
    queued: int
    #: Prompts that wait, or that a worker has: what an autoscaler goes by. Of plain Celery calls that no worker has
    #: taken yet, those without a priority.
    unfinished: int
    #: How long the oldest of them has waited, in seconds; 0 if none waits.
    oldest_s: float
    running: int
    #: Prompts that workers have: in their engines, or claimed and waiting for a slot.
    in_flight: int
    workers: int
    tokens_per_s: float
    #: Prompts that come and that end a second, over the last minute.
    arrivals_per_s: float = 0.0
    completions_per_s: float = 0.0
    #: Whether its queue is paused: what runs goes on, and nothing else begins.
    paused: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drain_s(self) -> float | None:
        """How long what is there will take at the pace of the last minute, in seconds.

        None if nothing ends, or no worker is there to go on at that pace.
        """
        if not self.unfinished:
            return 0.0
        return self.unfinished / self.completions_per_s if self.completions_per_s and self.workers else None


class Fleet(BaseModel):
    """All living workers, and all models that are served or waited for."""

    model_config = ConfigDict(frozen=True)

    models: tuple[ModelStatus, ...]
    workers: tuple[WorkerRecord, ...]


def publish_worker(client: redis.Redis, names: Names, record: WorkerRecord, ttl_s: float) -> None:
    """Writes a worker's record, to last ``ttl_s`` seconds."""
    now = time.time()
    with client.pipeline(transaction=False) as pipe:
        pipe.set(names.worker(record.name), record.model_dump_json(), px=int(ttl_s * 1000))
        pipe.zadd(names.workers, {record.name: now + ttl_s})
        pipe.execute()


async def forget_lost_workers(transport: Transport, names: Names) -> None:
    """Takes the names of workers that died long ago out of the list; their records have expired."""
    # An hour's slack: clocks of machines differ, and the records themselves expire by the broker's.
    await transport.execute([("ZREMRANGEBYSCORE", names.workers, "-inf", time.time() - 3600)])


def withdraw_worker(client: redis.Redis, names: Names, name: str) -> None:
    """Removes the record of a worker that stops."""
    with client.pipeline(transaction=False) as pipe:
        pipe.delete(names.worker(name))
        pipe.zrem(names.workers, name)
        pipe.execute()


async def read_workers(transport: Transport, names: Names) -> list[WorkerRecord]:
    """The records of all living workers, by name."""
    [listed] = await transport.execute([("ZRANGE", names.workers, 0, -1)])
    if not listed:
        return []
    [records] = await transport.execute([("MGET", *(names.worker(name.decode()) for name in listed))])
    return sorted((WorkerRecord.model_validate_json(record) for record in records if record), key=lambda w: w.name)


async def read_fleet(transport: Transport, names: Names) -> Fleet:
    """Workers and queues as they are now."""
    workers = await read_workers(transport, names)
    by_model: dict[str, list[WorkerRecord]] = defaultdict(list)
    for worker in workers:
        by_model[worker.served_name].append(worker)
    queues = await _read_queues(transport, names)
    for queue in {lane.rpartition("|")[0] for lane in queues.lanes} | queues.paused | queues.calls.keys():
        by_model[model_of_queue(queue)]
    models = [await _model_status(transport, names, name, by_model[name], queues) for name in sorted(by_model)]
    return Fleet(models=tuple(models), workers=tuple(workers))


@dataclass(frozen=True)
class _Queues:
    #: Lanes that hold records or messages.
    lanes: set[str]
    #: Queues that are paused.
    paused: set[str]
    #: Messages in the list that plain calls without a priority wait in, by queue; without queues that have none.
    calls: dict[str, int]
    #: The broker's time, in seconds since 1970.
    now: float


async def _read_queues(transport: Transport, names: Names) -> _Queues:
    lanes, paused, totals, (seconds, microseconds) = await transport.execute(
        [("SMEMBERS", names.lanes), ("HKEYS", names.paused), ("HKEYS", names.totals), ("TIME",)]
    )
    paused = {queue.decode() for queue in paused}
    calls = await _read_calls(transport, paused | {field.decode().rpartition("|")[0] for field in totals})
    return _Queues({lane.decode() for lane in lanes}, paused, calls, seconds + microseconds / 1e6)


async def _read_calls(transport: Transport, queues: set[str]) -> dict[str, int]:
    # The ledger knows nothing of a plain call before a worker has taken it; whether its queue was ever served, it does.
    asked = sorted(queues)
    commands = [("LLEN", list_name(lane_name(queue, Priority.FRONT))) for queue in asked]
    lengths = await transport.execute(commands) if commands else []
    return {queue: length for queue, length in zip(asked, lengths, strict=True) if length}


async def _model_status(
    transport: Transport, names: Names, name: str, workers: list[WorkerRecord], queues: _Queues
) -> ModelStatus:
    lanes = [names.lane(lane) for lane in lanes_of(name) if lane in queues.lanes]
    commands = [command for lane in lanes for command in (("ZCARD", lane), ("ZRANGE", lane, 0, 0, "WITHSCORES"))]
    queue = queue_name(name)
    *replies, unfinished, rates = await transport.execute(
        [*commands, ("HGET", names.prompts, queue), ("HGET", names.rates, queue)]
    )
    records = dict(zip(lanes, replies[::2], strict=True))
    # A record that comes of such a call, or of a dead letter, has a message of its own there.
    calls = max(0, queues.calls.get(queue, 0) - records.get(names.lane(lane_name(queue, Priority.FRONT)), 0))
    arrivals_per_s, completions_per_s = map(float, (rates or b"0 0").split())
    oldest = [float(score) for entries in replies[1::2] for _, score in entries]
    return ModelStatus(
        name=name,
        queued=sum(replies[::2]),
        unfinished=int(unfinished or 0) + calls,
        oldest_s=max(0.0, queues.now - min(oldest) / 1e6) if oldest else 0.0,
        running=sum(worker.running for worker in workers),
        in_flight=sum(worker.running + worker.waiting for worker in workers),
        workers=len(workers),
        tokens_per_s=sum(worker.tokens_per_s for worker in workers),
        arrivals_per_s=arrivals_per_s,
        completions_per_s=completions_per_s,
        paused=queue in queues.paused,
    )
