"""A Celery application with a task that does nothing: what ``against_celery.py`` compares with."""

from __future__ import annotations

import os

from celery import Celery

__all__ = ["app", "noop"]

app = Celery("noop_app", broker=os.environ["NOOP_BROKER"], backend=os.environ["NOOP_BROKER"])
app.conf.update(result_expires=3600, task_default_queue="noop", worker_prefetch_multiplier=4)


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop(prompt: str) -> dict[str, str]:
    """What an echo of the prompt would be."""
    return {"text": prompt, "finish_reason": "stop"}
