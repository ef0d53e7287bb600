"""What one worker process is made of, and the order in which it starts and stops."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import uuid
from importlib.metadata import version

from celery.worker import state

from promptmill.broker import connect
from promptmill.fleet import WorkerRecord, publish_worker, withdraw_worker
from promptmill.ledger import Claim, Ledger
from promptmill.names import Names
from promptmill_worker.claims import Bench
from promptmill_worker.counters import Counters
from promptmill_worker.leases import Leases
from promptmill_worker.loading import load_engine
from promptmill_worker.periodic import Periodic
from promptmill_worker.pool import WakeUp
from promptmill_worker.room import Room
from promptmill_worker.settings import WorkerSettings

__all__ = ["Runtime"]

log = logging.getLogger(__name__)

#: A fleet record outlives this many missed beats.
RECORD_BEATS = 4


class Runtime:
    """One engine and all that keeps it busy. Made with the Celery app, started by its bootstep."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.name = settings.worker_name or f"{socket.gethostname()}-{os.getpid()}"
        self.names = Names(settings.key_prefix)
        self.room = Room(settings.max_in_flight)
        self.wake_up = WakeUp()
        self.room.on_free = self.wake_up.wake
        # Answers that are finished are kept until the broker takes them; a beat is due again soon anyway.
        self.client = connect(settings)
        self.ledger = Ledger(self.client, self.names, patience_s=math.inf)
        hasty = Ledger(self.client, self.names)
        self.leases = Leases(hasty, settings.lease_s)
        self.counters = Counters()
        self._sweeping = hasty
        self._periodic = [
            Periodic("lease renewal", settings.beat_s, self._beat),
            Periodic("sweep", settings.sweep_s, self._sweep),
            Periodic("fleet record", settings.beat_s, self._publish),
        ]
        self.bench: Bench
        self._started = False

    def start(self) -> None:
        """Loads the model, then shows up in the fleet.

        Raises:
            ModelLoadError: the model can't be loaded.
        """
        engine = load_engine(self.settings)
        self.bench = Bench(
            engine, self.ledger, self.counters, self.name, self.settings.name_served, self._on_engine_died
        )
        self._started = True
        for periodic in self._periodic:
            periodic.start()
        log.info("worker %s serves %s as %r", self.name, self.settings.model, self.settings.name_served)

    def claim(self, record_id: str, room: int, lane: str = "", score: str = "0") -> Claim | None:
        """Claims up to ``room`` prompts of a record; None if there is nothing to do."""
        token = f"{record_id}/{uuid.uuid4().hex}"
        claim = self.ledger.claim(record_id, token, room, self.settings.lease_s, lane, score)
        return claim if isinstance(claim, Claim) else None

    def begin_shutdown(self) -> None:
        """Gives running prompts ``grace_s`` to end; what then still runs goes back into the queue."""
        if self._started:
            timer = threading.Timer(self.settings.grace_s, self.leases.put_back_all)
            timer.daemon = True
            timer.start()

    def stop(self) -> None:
        """Ends all threads, leaves the fleet, and gives the engine's memory back."""
        if not self._started:
            return
        self._started = False
        for periodic in self._periodic:
            periodic.stop()
        self.ledger.close()
        try:
            withdraw_worker(self.client, self.names, self.name)
        except Exception as error:  # the record expires by itself
            log.warning("could not leave the fleet (%s)", type(error).__name__)
        self.bench.engine.close()

    def _beat(self) -> None:
        self.leases.renew()
        if self.bench.engine.failure is not None:
            self._on_engine_died()

    def _sweep(self) -> None:
        for line in self._sweeping.sweep(self.name, self.settings.sweep_s, self.settings.sweep_grace_s):
            log.warning("swept: lost %s", line)

    def _publish(self) -> None:
        engine, counters = self.bench.engine, self.counters
        record = WorkerRecord(
            name=self.name,
            served_name=self.settings.name_served,
            running=engine.running,
            free=max(0, self.room.free),
            prompts_done=counters.prompts_done,
            prompts_failed=counters.prompts_failed,
            prompt_tokens=counters.prompt_tokens,
            completion_tokens=counters.completion_tokens,
            tokens_per_s=counters.tokens_per_s(),
            uptime_s=counters.uptime_s,
            version=version("promptmill"),
            **engine.info.model_dump(include=set(WorkerRecord.model_fields)),
        )
        publish_worker(self.client, self.names, record, ttl_s=RECORD_BEATS * self.settings.beat_s)

    def _on_engine_died(self) -> None:
        """The process has to end, and not as if all were well: its launcher starts another."""
        if not state.should_stop:
            log.critical("the engine died (%s); the worker ends", type(self.bench.engine.failure).__name__)
            state.should_stop = 1
            self.wake_up.wake()
