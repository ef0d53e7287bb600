"""A worker's log as JSON: whose line it is, and which task it is about."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import signals

from promptmill.log_format import JsonFormatter

__all__ = ["about_task", "log_as_json"]

_task: ContextVar[str | None] = ContextVar("task", default=None)


@contextmanager
def about_task(task_id: str) -> Iterator[None]:
    """What this thread logs while the block runs is about this task."""
    token = _task.set(task_id)
    try:
        yield
    finally:
        _task.reset(token)


def log_as_json(worker_name: str) -> None:
    """Has Celery, and all that log through it, write JSON, once it sets its log up."""
    formatter = JsonFormatter({"worker": lambda: worker_name, "task": _task.get})

    def use_it(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.setFormatter(formatter)

    signals.after_setup_logger.connect(use_it, weak=False)
    signals.after_setup_task_logger.connect(use_it, weak=False)
