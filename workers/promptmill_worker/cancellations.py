"""Hearing of cancelled prompts at once."""

from __future__ import annotations

import logging
import threading

import redis

from promptmill.ledger import Ledger
from promptmill_worker.leases import Leases

__all__ = ["Cancellations"]

log = logging.getLogger(__name__)

#: How long one read waits for news; a stop takes effect after that, in seconds.
READ_S = 1.0

#: How long to wait before a broker that is away is tried again, in seconds.
RETRY_S = 1.0


class Cancellations:
    """Listens to what submitters cancel, and tells those that work on it.

    A message may be missed while the broker is away, so that after each new connection the ledger is asked.

    Args:
        client: A redis-py client.
        ledger: To ask what was missed.
        leases: Told of what is cancelled.
    """

    def __init__(self, client: redis.Redis, ledger: Ledger, leases: Leases) -> None:
        self._client = client
        self._ledger = ledger
        self._leases = leases
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="promptmill cancellations", daemon=True)

    def start(self) -> None:
        """Listens, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Listens no longer."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (redis.RedisError, ValueError) as error:  # ValueError: others may publish here, too
                log.debug("not listening for cancelled prompts (%s); trying again", type(error).__name__)
                self._stopped.wait(RETRY_S)

    def _listen(self) -> None:
        with self._client.pubsub() as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(self._ledger.names.settled)
            while not self._stopped.is_set():
                message = channel.get_message(timeout=READ_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self._catch_up()
                elif message["type"] == "message":
                    positions, _, record_id = message["data"].decode().partition(" ")
                    self._leases.settle(record_id, tuple(map(int, positions.split(","))))

    def _catch_up(self) -> None:
        held = sorted(self._leases.records())
        for record_id, snapshot in zip(held, self._ledger.look(held), strict=True):
            self._leases.settle(record_id, tuple(snapshot.answers))
