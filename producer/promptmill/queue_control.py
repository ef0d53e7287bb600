"""The queue of a model: paused, resumed, purged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

from promptmill.blocking import BlockingTransport, run
from promptmill.broker import connect
from promptmill.broker_errors import broker_errors
from promptmill.errors import InvalidRequestError, TaskCancelledError
from promptmill.fleet import read_fleet
from promptmill.ledger import Ledger
from promptmill.names import Names, lanes_of, list_name, queue_name
from promptmill.protocol import answer_to_wire
from promptmill.settings import ClientSettings

__all__ = ["QueueControl", "Queued"]

_PURGED = answer_to_wire(TaskCancelledError("the queue was purged"))


@dataclass(frozen=True)
class Queued:
    """What a queue holds, or what was removed from it."""

    #: Prompts that no worker has; a chunk of 64 counts as 64.
    prompts: int
    #: Plain Celery calls that no worker has taken yet.
    calls: int


class QueueControl:
    """Stops, starts and empties the queues behind one broker. A context manager.

    All methods raise BrokerUnavailableError if the broker does not answer, and InvalidRequestError if nobody serves the
    model and nothing is queued for it.

    Args:
        settings: Names the broker.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._redis = connect(settings, socket_timeout=settings.broker_timeout_s)
        self._names = Names(settings.key_prefix)
        self._ledger = Ledger(self._redis, self._names, patience_s=settings.broker_timeout_s)

    def pause(self, model: str) -> bool:
        """Nothing more of the model's queue begins; what runs goes on, and deadlines still end what waits.

        Returns:
            Whether it was not paused before.
        """
        with self._known(model):
            seconds, _ = self._ledger.patiently(self._redis.time)
            queue = queue_name(model)
            return bool(self._ledger.patiently(lambda: self._redis.hset(self._names.paused, queue, seconds)))

    def resume(self, model: str) -> bool:
        """Workers take work again, within a beat (two seconds); returns whether it was paused."""
        with self._known(model):
            return bool(self._ledger.patiently(lambda: self._redis.hdel(self._names.paused, queue_name(model))))

    def queued(self, model: str) -> Queued:
        """What ``purge`` would remove now; messages that are left of cancelled tasks are counted as calls here."""
        with self._known(model):
            lanes = lanes_of(model)
            prompts = sum(self._end(lane, b"", self._ledger.last_time()) for lane in lanes)
            records = sum(self._ledger.patiently(partial(self._redis.zcard, self._names.lane(lane))) for lane in lanes)
            return Queued(prompts, max(0, sum(map(self._messages, lanes)) - records))

    def purge(self, model: str) -> Queued:
        """Ends all that is queued when it is called with TaskCancelledError; what workers hold goes on.

        Submitters are told at once. Plain calls that no worker has taken yet are deleted, as ``celery purge`` does it:
        their callers are told nothing. It is done in parts of some ten milliseconds, between which the broker does
        other work.

        Returns:
            What was removed.
        """
        with self._known(model):
            lanes, entered_by = lanes_of(model), self._ledger.last_time()
            prompts = ended = sum(self._end(lane, _PURGED, entered_by) for lane in lanes)
            while ended:  # what a worker had taken a part of meanwhile was queued again
                ended = sum(self._end(lane, _PURGED, entered_by) for lane in lanes)
                prompts += ended
            return Queued(prompts, sum(map(self._clear, lanes)))

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _end(self, lane: str, answer: bytes, entered_by: int) -> int:
        """Ends what is queued in one lane; returns how many prompts."""
        total, skip, goes_on = 0, 0, True
        while goes_on:
            prompts, skip, goes_on = self._ledger.purge(lane, answer, entered_by, skip)
            total += prompts
        return total

    def _clear(self, lane: str) -> int:
        """Deletes the messages of one lane that lead nowhere; returns how many plain calls were among them."""
        total, left = 0, self._messages(lane)
        while left > 0:
            calls, looked = self._ledger.clear(lane, left)
            total, left = total + calls, left - looked
        return total

    def _messages(self, lane: str) -> int:
        return int(cast(Any, self._ledger.patiently(lambda: self._redis.llen(list_name(lane)))))

    @contextmanager
    def _known(self, model: str) -> Iterator[None]:
        with broker_errors(self._settings):
            fleet = self._ledger.patiently(lambda: run(read_fleet(BlockingTransport(self._redis), self._names)))
            known = [model.name for model in fleet.models]
            if model not in known and not any(map(self._messages, lanes_of(model))):
                raise InvalidRequestError(
                    f"no worker serves {model!r} and nothing is queued for it; known are: {', '.join(known) or 'none'}"
                )
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
