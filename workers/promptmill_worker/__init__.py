"""promptmill's worker: the engine, and the Celery worker around it."""

from promptmill_worker.engine import Engine

__all__ = ["Engine"]
