"""Our ways: the engine alone, and through the queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from contest import Answer, Job, Setting, Submit

from promptmill import Client, Task
from promptmill.local_worker import LocalWorker
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker import Engine

__all__ = ["in_process", "queue"]


@contextmanager
def in_process(setting: Setting) -> Iterator[Submit]:
    """The ceiling: our engine, without a queue."""
    engine = Engine.load(str(setting.model), dtype=setting.dtype, threads=setting.threads, max_batch=setting.slots)

    def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
        requests = [GenerationRequest.of(messages=job.messages, **_sampling(job)) for job in jobs]
        return [_answered(engine.submit(request)) for request in requests]

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

        def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
            tasks = [client.submit(messages=job.messages, **_sampling(job)) for job in jobs]
            return [waiting.submit(_answer_of_task, task) for task in tasks]

        yield submit


def _sampling(job: Job) -> dict[str, Any]:
    return {"max_tokens": job.max_tokens, "temperature": 0.0, "ignore_eos": True}


def _answer_of_task(task: Task) -> Answer:
    return _answer(task.result())


def _answered(generated: Future[GenerationResult]) -> Future[Answer]:
    answered: Future[Answer] = Future()
    generated.add_done_callback(lambda done: answered.set_result(_answer(done.result())))
    return answered


def _answer(result: GenerationResult) -> Answer:
    return Answer(result.text, result.usage.completion_tokens)
