"""RQ: it knows no threads; a pool of workers that run jobs without a fork for each, one a core; bulk submission."""

from __future__ import annotations

import os
from collections.abc import Callable

from peer_round import BROKER, PROMPT, main
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from rq.worker_pool import WorkerPool

#: Jobs that are submitted in one pipeline.
BULK = 500


def echo(prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """A process for each core."""
    pool = WorkerPool(
        ["echo"],
        Redis.from_url(BROKER),
        num_workers=os.cpu_count() or 1,
        worker_class=SimpleWorker,
        serializer=JSONSerializer,
    )
    pool.start(burst=False, logging_level="ERROR")


def run(tasks: int, submitted: Callable[[], None]) -> list[str]:
    """Answers are waited for one after the other, as ``Job.latest_result`` does it."""
    queue = Queue("echo", connection=Redis.from_url(BROKER), serializer=JSONSerializer)
    job = Queue.prepare_data("rq_peer.echo", (PROMPT,), description="echo", result_ttl=3600, timeout=60)
    jobs = []
    for start in range(0, tasks, BULK):
        jobs += queue.enqueue_many([job] * min(BULK, tasks - start))
    submitted()
    results = [job.latest_result(timeout=60) for job in jobs]
    return [result.return_value for result in results if result is not None]


if __name__ == "__main__":
    main(worker, run)
