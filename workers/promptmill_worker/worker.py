"""The Celery worker around an engine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, bootsteps, signals
from celery.platforms import SecurityWarning
from kombu import Queue

from promptmill.app import create_app
from promptmill.errors import PromptmillError
from promptmill.log_format import Log
from promptmill.names import again_queue_name, queue_name
from promptmill_worker.broker_shown import broker_shown
from promptmill_worker.json_logs import log_as_json
from promptmill_worker.loading import LoadEngine, load_engine
from promptmill_worker.message_check import CheckingConsumer
from promptmill_worker.pool import TaskPool
from promptmill_worker.private_logs import hide_messages
from promptmill_worker.runtime import Runtime
from promptmill_worker.settings import WorkerSettings
from promptmill_worker.tasks import register_tasks

__all__ = ["create_worker_app", "run_worker"]

#: How often Flower hears that a worker lives, in seconds.
HEARTBEAT_S = 4.0

#: How often the events of tasks are sent, in seconds; and at so many of them they are sent at once.
EVENTS_EVERY_S = 0.2
EVENTS_AT_ONCE = 240


def create_worker_app(settings: WorkerSettings, load: LoadEngine = load_engine) -> Celery:
    """The app that a worker runs: ``app.Worker()`` and ``celery -A promptmill_worker worker`` do the same with it.

    Its engine is loaded when a worker starts, before the first message is taken.
    """
    app = create_app(settings)
    runtime = Runtime(settings, load)
    parts = {
        "room": runtime.room,
        "gate": runtime.gate,
        "pause": runtime.pause,
        "wake_up": runtime.wake_up,
        "cut_short": runtime.cut_short,
    }
    pool = type("TaskPool", (TaskPool,), parts)
    app.conf.update(
        task_queues=[Queue(again_queue_name(settings.name_served)), Queue(queue_name(settings.name_served))],
        # A thread a prompt at most; chunks need fewer.
        worker_concurrency=settings.places,
        worker_pool=pool,
        worker_consumer=CheckingConsumer,
        result_expires=settings.result_ttl_s,
    )
    register_tasks(app, runtime)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        # Two lines a task; what a worker does shows in its record.
        logging.getLogger(name).setLevel(logging.WARNING)
    hide_messages()
    app.steps["worker"].add(_engine_step(runtime))
    app.steps["consumer"].add(_loop_step(runtime))
    signals.worker_shutting_down.connect(lambda **_: runtime.begin_shutdown(), weak=False)
    signals.worker_shutdown.connect(lambda **_: runtime.stop(), weak=False)
    return app


def run_worker(app: Celery, settings: WorkerSettings, log: Log, on_ready: Callable[..., None] | None = None) -> int:
    """Runs a worker of ``create_worker_app`` in this process, until it ends.

    Args:
        app: The app.
        settings: What it was made with.
        log: What is logged, and how.
        on_ready: Called once it takes tasks, as Celery calls ``worker_ready``.

    Returns:
        The exit code.
    """
    # Celery warns of root because of pickle; our messages are JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    if log.format == "json":
        log_as_json(settings.name_of_worker)
    process = app.Worker(
        loglevel=log.level.upper(),
        hostname=f"{settings.name_served}-{os.getpid()}@{socket.gethostname()}",
        quiet=True,
        # Workers know of each other through the ledger; asking around would only delay the start by a second.
        without_mingle=True,
        without_gossip=True,
        heartbeat_interval=HEARTBEAT_S,
    )
    if on_ready is not None:
        signals.worker_ready.connect(on_ready, weak=False)
    process.start()
    return int(process.exitcode or 0)


def _engine_step(runtime: Runtime) -> type[bootsteps.StartStopStep]:
    class EngineStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Loads the model; Celery starts its consumer last of all steps."""

        requires = ("celery.worker.components:Pool",)

        def start(self, _worker: Any) -> None:
            try:
                with _signals_that_end():
                    runtime.start()
            except PromptmillError as error:
                sys.stderr.write(f"promptmill: {error}\n")
                raise SystemExit(1) from None

        def info(self, _worker: Any) -> dict[str, str]:
            """What ``inspect stats`` and the worker's page in Flower show besides."""
            return runtime.shown()

        def stop(self, _worker: Any) -> None:
            """Nothing yet: the pool, which stops after this step, still needs the engine."""

    return EngineStep


@contextmanager
def _signals_that_end() -> Iterator[None]:
    """While a model is loaded, which may take minutes, a worker that is asked to end has nothing to finish first."""
    celerys = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in celerys.items():
            signal.signal(number, handler)


def _loop_step(runtime: Runtime) -> type[bootsteps.StartStopStep]:
    class LoopStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Has a freed place wake Celery's loop, which would find out half a second later; counts the loop's turns.

        And has the events of tasks, which are for those who watch, sent many at once: at each turn of the loop, as
        Celery does it, they hold a prompt up on its way.
        """

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            if consumer.hub is not None:
                consumer.event_dispatcher.on_send_buffered = None
                consumer.event_dispatcher.buffer_limit = EVENTS_AT_ONCE  # Celery's own is 24
                consumer.hub.call_repeatedly(EVENTS_EVERY_S, consumer.event_dispatcher.flush)
                consumer.hub.add_reader(runtime.wake_up.read_end, runtime.wake_up.drain)
                consumer.hub.call_repeatedly(1.0, runtime.health.tick)

        def info(self, consumer: Any) -> dict[str, Any]:
            """In place of what Celery tells of the broker; this step comes after the one that does."""
            return {"broker": broker_shown(consumer.connection)} if consumer.connection else {}

        def stop(self, consumer: Any) -> None:
            """The loop goes, its reader and its timers with it."""
            consumer.event_dispatcher.flush()

    return LoopStep
