"""Flower's Broker page and ``/api/queues/length``, with our queues as they are in the broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis
from flower.api.tasks import GetQueueLengths
from flower.views import BaseHandler
from flower.views.broker import BrokerView
from tornado import web

from promptmill.broker import connect_async
from promptmill.names import PRIORITY_STEPS, Names, lane_name, list_name
from promptmill.settings import Settings

__all__ = ["BrokerPage", "QueueLengths", "Queues"]


class Queues:
    """Queues and how many messages they hold. Belongs to the event loop on which it is first asked.

    Flower's own way reaches fewer kinds of brokers than we do, and knows only queues that a living worker consumes.

    Args:
        settings: Names the broker.
    """

    def __init__(self, settings: Settings) -> None:
        self._redis = connect_async(settings)
        self._lanes = Names(settings.key_prefix).lanes

    async def names(self) -> set[str]:
        """Those that hold work of ours, or held some lately."""
        lanes: set[bytes] = await self._redis.smembers(self._lanes)  # type: ignore[assignment]
        return {lane.decode().rpartition("|")[0] for lane in lanes}

    async def lengths(self, names: Iterable[str]) -> dict[str, int]:
        """Messages in each queue, over all its priorities."""
        names = list(names)
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                for priority in PRIORITY_STEPS:
                    pipe.llen(list_name(lane_name(name, priority)))
            lengths = iter(await pipe.execute())
        return {name: sum(next(lengths) for _ in PRIORITY_STEPS) for name in names}


class _OurQueues(BaseHandler):  # type: ignore[misc]
    #: Set by ``routes``.
    queues: Queues

    def initialize(self, queues: Queues) -> None:
        self.queues = queues

    async def rows(self) -> list[dict[str, Any]]:
        """Queues as Flower's table has them."""
        consumers = self._consumers()
        lengths = await self.queues.lengths(sorted(consumers.keys() | await self.queues.names()))
        return [
            {"name": name, "messages": length, "messages_ready": length, "consumers": consumers.get(name, 0)}
            for name, length in lengths.items()
        ]

    def _consumers(self) -> dict[str, int]:
        alive = self.application.events.state.workers
        counts: dict[str, int] = {}
        for worker, info in self.application.workers.items():
            for queue in info.get("active_queues", ()) if worker in alive and alive[worker].alive else ():
                counts[queue["name"]] = counts.get(queue["name"], 0) + 1
        return counts


class BrokerPage(_OurQueues, BrokerView):  # type: ignore[misc]
    """``/broker``."""

    @web.authenticated
    async def get(self) -> None:
        """Shows the page, without queues if the broker does not answer."""
        try:
            queues = await self.rows()
        except redis.RedisError:
            queues = []
        self.render("broker.html", broker_url=self.application.broker_uri, queues=queues)


class QueueLengths(_OurQueues, GetQueueLengths):  # type: ignore[misc]
    """``/api/queues/length``."""

    @web.authenticated
    async def get(self) -> None:
        """Writes what the page shows."""
        try:
            self.write({"active_queues": await self.rows()})
        except redis.RedisError:
            raise web.HTTPError(503, "the broker does not answer") from None
