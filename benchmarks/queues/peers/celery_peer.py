"""Celery: a threads pool; short tasks are prefetched in large numbers, as its documentation advises."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from celery.result import ResultSet
from peer_round import BROKER, PROMPT, SLOTS, main

URL = BROKER.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host=")

app = Celery("celery_peer", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=64, result_expires=3600)


@app.task(name="echo")  # type: ignore[untyped-decorator]
def echo(prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """One process with threads."""
    options = ["--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", "--pool", "threads", "--concurrency", str(SLOTS), *options])


def run(tasks: int, submitted: Callable[[], None]) -> list[str]:
    """There is no bulk submission: one message after the other, over one connection; read as answers come."""
    with app.producer_pool.acquire(block=True) as producer:
        results = ResultSet([echo.apply_async((PROMPT,), producer=producer) for _ in range(tasks)])
    submitted()
    if tasks == 1:
        return [results[0].get()]  # `iter_native` would look for it twice a second
    return [answer["result"] for _, answer in results.iter_native()]


if __name__ == "__main__":
    main(worker, run)
