"""What one worker process is made of, and the order in which it starts and stops."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from itertools import groupby

from celery.worker import state

from promptmill import history
from promptmill.blocking import BlockingTransport, run
from promptmill.broker import connect
from promptmill.broker_address import BrokerAddress
from promptmill.broker_errors import check_access
from promptmill.errors import TaskCancelledError
from promptmill.fleet import publish_worker, withdraw_worker
from promptmill.ledger import Claim, Ledger
from promptmill.names import Names, queue_name
from promptmill.protocol import answer_to_wire
from promptmill_worker.cancellations import Cancellations
from promptmill_worker.card import card, card_rows
from promptmill_worker.claims import Bench
from promptmill_worker.counters import Counters
from promptmill_worker.eviction import warn_of_eviction
from promptmill_worker.gate import Gate
from promptmill_worker.health import Health, HealthServer
from promptmill_worker.leases import Leases
from promptmill_worker.loading import LoadEngine, load_engine
from promptmill_worker.pause import Pause
from promptmill_worker.periodic import Periodic
from promptmill_worker.pool import WakeUp
from promptmill_worker.room import Room
from promptmill_worker.self_portrait import SelfPortrait
from promptmill_worker.settings import WorkerSettings
from promptmill_worker.stall import StallWatch
from promptmill_worker.stream_writer import StreamWriter
from promptmill_worker.waiting_room import WaitingRoom
from promptmill_worker.warm_up import warmed_up

__all__ = ["Runtime"]

log = logging.getLogger(__name__)

_REVOKED = answer_to_wire(TaskCancelledError("the task was revoked"))

#: How long a worker that ends tries to reach the broker for a last word, in seconds.
LAST_PATIENCE_S = 5.0

#: How many records a line of the log names.
SHOWN_RECORDS = 5

#: A fleet record outlives this many missed beats.
RECORD_BEATS = 4


class Runtime:
    """One engine and all that keeps it busy. Made with the Celery app, started by its bootstep.

    Args:
        settings: The worker's.
        load: Makes the engine, when the worker starts.
    """

    def __init__(self, settings: WorkerSettings, load: LoadEngine = load_engine) -> None:
        self.settings = settings
        self._load = load
        self.name = settings.name_of_worker
        self.names = Names(settings.key_prefix)
        self.room = Room(settings.places)
        self.wake_up = WakeUp()
        self.gate = Gate()
        self.pause = Pause()
        self.room.on_free = self.gate.on_open = self.pause.on_end = self.wake_up.wake
        #: Tells this process from others, also from one of the same name before it; see ``Ledger.claim``.
        self._run = f"{uuid.uuid4().hex[:8]}@{self.name}"
        self._claims = itertools.count()
        # Answers that are finished are kept until the broker takes them; a beat is due again soon anyway.
        self.client = connect(settings)
        self.ledger = Ledger(self.client, self.names, patience_s=math.inf)
        # A dead connection is noticed, and another one tried, before a lease runs out.
        hasty = Ledger(connect(settings, socket_timeout=min(settings.beat_s, settings.lease_s / 4)), self.names)
        self.leases = Leases(hasty, settings.lease_s)
        self._cancellations = Cancellations(self.client, hasty, self.leases)
        self.counters = Counters()
        self._streams = StreamWriter(hasty)
        self._hasty = hasty
        self._periodic = [
            Periodic("lease renewal", settings.beat_s, self._beat),
            Periodic("sweep", settings.sweep_s, self._sweep),
            Periodic("pause", settings.beat_s, self._look_for_pause),
            Periodic("fleet record", settings.beat_s, self._publish),
            Periodic("history", history.EVERY_S, self._add_to_history),
        ]
        self.health = Health(beat_limit_s=2 * settings.lease_s)
        self._health_server: HealthServer | None = None
        self._stall: StallWatch
        self._portrait: SelfPortrait
        self.bench: Bench
        self._started = self._shutting_down = False

    def start(self) -> None:
        """Loads the model, then shows up in the fleet.

        Raises:
            ModelLoadError: the model can't be loaded.
            BrokerUnavailableError: the broker is not to be trusted, or denies us something. (One that is away is waited
                for.)
        """
        if check_access(self.settings, self.settings.name_served):
            warn_of_eviction(self.client)
        else:
            log.warning("the broker at %s does not answer yet", BrokerAddress.parse(self.settings.broker_url))
        engine = self._load(self.settings)
        engine.info = warmed_up(engine, self.settings.measure_s)
        self.bench = Bench(
            engine,
            WaitingRoom(engine),
            self.ledger,
            self.counters,
            self._streams,
            self.name,
            self.settings.name_served,
            self._on_engine_died,
        )
        self._stall = StallWatch(engine, self.settings.engine_stall_s, longest_gap_s=2 * self.settings.beat_s)
        self._portrait = SelfPortrait(self.bench, self.room)
        self.health.engine_loaded = self._started = True
        if self.settings.metrics_port is not None:
            self._serve_pages(self.settings.metrics_port)
        for periodic in self._periodic:
            periodic.start()
        self._cancellations.start()
        self._streams.start()
        log.info("worker %s serves %s:\n%s", self.name, self.settings.name_served, card(engine.info))

    def shown(self) -> dict[str, str]:
        """The card, under the names by which clients and the fleet know this worker."""
        names = {"worker": self.name, "served name": self.settings.name_served}
        return {**names, **card_rows(self.bench.engine.info)} if self._started else names

    def claim(self, record_id: str, room: int, lane: str = "", score: str = "0") -> Claim | None:
        """Claims up to ``room`` prompts of a record; None if there is nothing to do, or the worker ends."""
        if self._shutting_down:
            return None
        token = f"{record_id}/{next(self._claims)}.{self._run}"
        settings = self.settings
        claim = self.ledger.claim(record_id, token, room, settings.lease_s, settings.max_deliveries, lane, score)
        if claim == "paused":
            self.pause.note(True)
        return claim if isinstance(claim, Claim) else None

    def begin_shutdown(self) -> None:
        """Gives running prompts ``grace_s`` to end, then puts them back; asked again, puts them back now."""
        if self._shutting_down:
            self._put_back()
        elif self._started:
            self._shutting_down = True
            _later(self.settings.grace_s, self._put_back)

    def revoke(self, task_id: str) -> None:
        """Celery has revoked the task, or found it expired: it ends in the ledger too, or it would be queued again.

        Called on Celery's loop, which can't wait for the broker.
        """

        def end() -> None:
            self.ledger.settle(task_id, _REVOKED)
            self.ledger.drop(task_id)

        threading.Thread(target=end, name="promptmill revoke", daemon=True).start()

    def cut_short(self) -> None:
        """Puts what still runs back now, if the worker is ending."""
        if self._shutting_down:
            self._put_back()

    def _put_back(self) -> None:
        self.leases.put_back_all()
        # The broker may be away, and we still have to end: then the leases run out instead.
        _later(LAST_PATIENCE_S, self.ledger.close)

    def stop(self) -> None:
        """Ends all threads, leaves the fleet, and gives the engine's memory back."""
        if not self._started:
            return
        self._started = False
        for periodic in self._periodic:
            periodic.stop()
        self._cancellations.stop()
        self._streams.stop()
        if self._health_server is not None:
            self._health_server.stop()
        self.ledger.close()
        try:
            withdraw_worker(self.client, self.names, self.name)
        except Exception as error:  # the record expires by itself
            log.warning("could not leave the fleet (%s)", type(error).__name__)
        self.bench.engine.close()

    def _serve_pages(self, port: int) -> None:
        # Here, not above: who asks for no page needs no prometheus-client.
        from promptmill_worker.metrics import WorkerMetrics

        metrics = WorkerMetrics(self._portrait.record, self.settings.name_served)
        self.counters.on_answer = metrics.count
        self._health_server = HealthServer(self.health, metrics.page, self.settings.metrics_host, port)
        self._health_server.start()

    def _beat(self) -> None:
        if self._stall.stalled():
            self._on_engine_stalled()
        if self.bench.engine.failure is not None:
            self._on_engine_died()
        self.leases.renew()
        self.health.beat()

    def _sweep(self) -> None:
        for line in _summed_up(self._hasty.sweep(self.name, self.settings.sweep_s, self.settings.sweep_grace_s)):
            log.warning("swept: %s", line)

    def _look_for_pause(self) -> None:
        self.pause.note(self._hasty.is_paused(queue_name(self.settings.name_served)))

    def _add_to_history(self) -> None:
        run(history.add_point(BlockingTransport(self.client), self.names))

    def _publish(self) -> None:
        ttl_s = RECORD_BEATS * self.settings.beat_s
        publish_worker(self.client, self.names, self._portrait.beat(), ttl_s)

    def _on_engine_died(self) -> None:
        """The process has to end, and not as if all were well: its launcher starts another."""
        if not state.should_stop:
            log.critical("the engine died (%s); the worker ends", type(self.bench.engine.failure).__name__)
            state.should_stop = 1
            self.leases.put_back_all()
            self.wake_up.wake()

    def _on_engine_stalled(self) -> None:
        """Ends the process at once, as a thread that hangs can't be ended: its leases run out, and others go on."""
        log.critical("the engine has made no progress for %.0f s; the worker ends", self._stall.still_s)
        logging.shutdown()
        os._exit(1)


def _summed_up(swept: list[str]) -> Iterator[str]:
    """A line for all that was swept for the same reason: after an outage there may be a million records."""
    for reason, lines in groupby(sorted(swept), lambda line: line.partition(" ")[0]):
        records = [line.partition(" ")[2] for line in lines]
        rest = f" and {len(records) - SHOWN_RECORDS:,} more" if len(records) > SHOWN_RECORDS else ""
        yield f"{reason} {', '.join(records[:SHOWN_RECORDS])}{rest}"


def _later(delay_s: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, action)
    timer.daemon = True
    timer.start()
