"""Handing prompts to the broker: waiting for one that is away, and for a queue that is full."""

from __future__ import annotations

import math
import time

from promptmill.errors import InvalidRequestError, QueueFullError
from promptmill.ledger import MEMORY_PERCENT, Asker, Entry, calls
from promptmill.names import Names, model_of_queue
from promptmill.outage import Outage

__all__ = ["TRY_S", "Entrance", "queue_full"]

#: How often a full queue is tried again, in seconds.
FULL_QUEUE_PAUSE_S = 0.2

#: How long one try of those that insist goes on, in seconds: the first connections of after an outage are dead.
TRY_S = 1.0


class Entrance:
    """The way into the ledger.

    The same record may be entered again and again, so that an unknown outcome is no trouble.

    Args:
        asker: The way to the broker.
        names: The keys.
        outage: Told whether the broker answers those that insist.
        broker_timeout_s: How long others try, in seconds.
    """

    def __init__(self, asker: Asker, names: Names, outage: Outage, broker_timeout_s: float) -> None:
        self._asker = asker
        self._names = names
        self._outage = outage
        self._broker_timeout_s = broker_timeout_s

    async def enter(self, entry: Entry, insist: bool, full_queue_wait_s: float) -> str:
        """Enters a record.

        Args:
            entry: What to enter.
            insist: Whether to wait for a broker that is away, for as long as it takes.
            full_queue_wait_s: How long to wait for a queue that is full, in seconds.

        Returns:
            The id of the record that answers it: another than its own if that one holds its idempotency key.

        Raises:
            InvalidRequestError: another request holds its idempotency key.
            QueueFullError: it is still full then, or has no place for this even when it is empty.
            redis.RedisError: the broker doesn't answer.
        """
        give_up_at = time.monotonic() + full_queue_wait_s
        while True:
            reply = await (self._insist(entry) if insist else self._ask(entry, self._broker_timeout_s))
            if reply == "conflict":
                raise InvalidRequestError(
                    "idempotency_key: it belongs to another request, whose task is queued, running or answered: use a "
                    "key of its own for each request"
                )
            if not reply.startswith("full"):
                return reply.removeprefix("same ") if reply.startswith("same ") else entry.record_id
            if time.monotonic() + FULL_QUEUE_PAUSE_S > give_up_at or reply == "full 0":
                raise queue_full(entry, reply)
            if await self._asker.pause(FULL_QUEUE_PAUSE_S):
                raise queue_full(entry, reply)

    async def _ask(self, entry: Entry, patience_s: float) -> str:
        [reply] = await self._asker.ask(calls.enter(self._names, [entry]), patience_s)
        return reply

    async def _insist(self, entry: Entry) -> str:
        one_try_s = min(TRY_S, self._broker_timeout_s)
        try:
            return await self._asker.patiently(
                lambda: self._outage.watch("entering", lambda: self._ask(entry, one_try_s)), math.inf
            )
        finally:
            self._outage.gave_up("entering")


def queue_full(entry: Entry, reply: str) -> QueueFullError:
    """What ``Ledger.enter`` means by "full" and "full N"."""
    if reply == "full":
        return QueueFullError(
            f"the broker's memory is more than {MEMORY_PERCENT} % full, and the rest is for answers: wait until the "
            "queue is shorter, or raise the broker's maxmemory"
        )
    held, limit = int(reply.removeprefix("full ")), entry.limit_prompts
    model = model_of_queue(entry.lane.rpartition("|")[0])
    return QueueFullError(
        f"queue {model!r} holds {held:,} prompts, {entry.count:,} more would pass its limit of {limit:,}: wait, or "
        "raise PROMPTMILL_MAX_QUEUED_PROMPTS",
        held,
        limit,
    )
