"""Workers of Celery that compute with ``generate()``: a prompt at a time, and in batches."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from celery import Celery
from celery.result import AsyncResult
from contest import Answer, Job, Setting, Submit
from environments import environment
from processes import peer

__all__ = ["celery_batches", "naive"]

REQUIREMENTS = Path(__file__).parent / "requirements" / "torch-peers.txt"


@contextmanager
def naive(setting: Setting) -> Iterator[Submit]:
    """A Celery task a prompt, solo pool; with our versions of Celery and transformers."""
    with _worker(Path(sys.executable), "naive", setting) as submit:
        yield submit


@contextmanager
def celery_batches(setting: Setting) -> Iterator[Submit]:
    """celery-batches."""
    with _worker(environment(REQUIREMENTS), "batches", setting) as submit:
        yield submit


@contextmanager
def _worker(python: Path, name: str, setting: Setting) -> Iterator[Submit]:
    app = Celery(broker=setting.broker_url, backend=setting.broker_url, set_as_current=False)
    app.conf.task_default_queue = name
    host = f"{name}@{platform.node()}"
    command = [str(python), "-m", "celery", "-A", f"{name}_worker", "worker", "--pool", "solo", "-n", host]

    def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
        tasks = [app.send_task("generate", (job.messages, job.max_tokens)) for job in jobs]
        return [waiting.submit(_answer_of, task) for task in tasks]

    def is_ready() -> bool:
        return bool(app.control.ping(timeout=1.0, destination=[host]))

    with peer([*command, "-l", "error"], setting, is_ready), ThreadPoolExecutor(256) as waiting, app:
        yield submit


def _answer_of(task: AsyncResult[tuple[str, int]]) -> Answer:
    return Answer(*task.get(interval=0.01))
