"""Our ways: the engine alone, and through the queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from contest import Job, Setting, Submit

from promptmill import Client, Task
from promptmill.local_worker import LocalWorker
from promptmill.protocol import GenerationRequest
from promptmill_worker import Engine

__all__ = ["in_process", "queue"]


@contextmanager
def in_process(setting: Setting) -> Iterator[Submit]:
    """The ceiling: our engine, without a queue."""
    engine = Engine.load(str(setting.model), dtype=setting.dtype, threads=setting.threads, max_batch=setting.slots)

    def submit(jobs: Sequence[Job]) -> list[Future[str]]:
        requests = [GenerationRequest.of(messages=job.messages, **_sampling(job)) for job in jobs]
        return [_text_of(engine.submit(request)) for request in requests]

    with engine:
        yield submit


@contextmanager
def queue(setting: Setting) -> Iterator[Submit]:
    """The same engine in a worker, one ``submit`` a prompt."""
    options = ["--model", str(setting.model), "--served-name", "smollm2", "--dtype", setting.dtype]
    options += ["--threads", str(setting.threads), "--max-batch", str(setting.slots), "--log-level", "error"]
    with (
        LocalWorker(setting.broker_url, options) as worker,
        Client(setting.broker_url, model="smollm2") as client,
        ThreadPoolExecutor(256) as waiting,
    ):
        worker.wait_until_ready(client)

        def submit(jobs: Sequence[Job]) -> list[Future[str]]:
            tasks = [client.submit(messages=job.messages, **_sampling(job)) for job in jobs]
            return [waiting.submit(_text_of_task, task) for task in tasks]

        yield submit


def _sampling(job: Job) -> dict[str, Any]:
    return {"max_tokens": job.max_tokens, "temperature": 0.0, "ignore_eos": True}


def _text_of_task(task: Task) -> str:
    return task.result().text


def _text_of(answer: Future[Any]) -> Future[str]:
    text: Future[str] = Future()
    answer.add_done_callback(lambda done: text.set_result(done.result().text))
    return text
