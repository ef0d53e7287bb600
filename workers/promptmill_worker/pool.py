"""Celery's thread pool, with room for prompts instead of slots for tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool

from promptmill_worker.broker_trouble import BROKER_TROUBLE
from promptmill_worker.gate import Gate
from promptmill_worker.pause import Pause
from promptmill_worker.room import Room

__all__ = ["TaskPool", "WakeUp"]

log = logging.getLogger(__name__)


class WakeUp:
    """A pipe that wakes Celery's event loop.

    The loop looks for free places when it ticks, which it does twice a second at worst; a freed place can't wait so
    long.
    """

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(self._write_end, False)

    def wake(self) -> None:
        """Wakes the loop; any thread may call it."""
        try:
            os.write(self._write_end, b"\0")
        except BlockingIOError:
            return  # the pipe is full: the loop has been woken and not come round yet

    def drain(self) -> None:
        """Takes what was written; the loop calls it."""
        os.read(self.read_end, 65536)


class TaskPool(ThreadPool):  # type: ignore[misc]
    """One thread a message; Celery pops no message while nothing is to be taken, see ``num_processes``.

    ``room``, ``gate``, ``pause``, ``wake_up`` and ``cut_short`` are set on the class by ``worker.create_worker_app``,
    since Celery makes the instance.
    """

    room: Room
    gate: Gate
    pause: Pause
    wake_up: WakeUp
    cut_short: Callable[[], None]

    @property
    def num_processes(self) -> int:
        """Celery's limit of reserved messages: none without room for a prompt, while one runs alone, or in a pause."""
        takes = self.room.free > 0 and self.gate.is_open and not self.pause.lasts
        return int(self.limit) if takes else 0

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Runs a task's message in a thread. Called on Celery's loop, which holds ``room`` to what it counted."""
        self.room.take()
        try:
            future = self.executor.submit(apply_target, target, args, kwargs, callback, accept_callback)
        except RuntimeError:  # the system has no thread for us
            self.room.give(1)
            raise
        request = getattr(callback, "__self__", None)
        future.add_done_callback(lambda done: self._on_done(done, request))
        return ApplyResult(future)

    def terminate_job(self, *_: Any) -> None:
        """A thread can't be killed: at a cold shutdown (Ctrl-C again) its prompts are put back, else it goes on."""
        self.cut_short()

    def _on_done(self, future: Future[None], request: Any) -> None:
        self.room.give(1)
        error = None if future.cancelled() else future.exception()
        if error is None or request is None:
            return
        # Celery's pool would swallow this and leave the message neither done nor failed: the broker was away while
        # it was entered, or while its result was stored. What is no trouble with the broker would come again and again.
        log.error("task %s left the pool without an outcome (%s)", request.id, type(error).__name__)
        if not request.acknowledged:
            request.reject(requeue=isinstance(error, BROKER_TROUBLE))
