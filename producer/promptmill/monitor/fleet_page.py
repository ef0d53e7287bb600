"""The fleet page: queues, workers and dead letters, in Flower's look and behind its login."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from flower.views import BaseHandler
from tornado import web

from promptmill.async_client import AsyncClient
from promptmill.dead_letters import DeadLetter, DeadLetters
from promptmill.errors import PromptmillError
from promptmill.monitor.settings import MonitorSettings
from promptmill.settings import ClientSettings

__all__ = ["FleetData", "FleetPage", "FleetSource"]

#: How many dead letters the page shows.
SHOWN_LETTERS = 10


class FleetSource:
    """What the page shows. Belongs to the event loop on which it is first asked.

    Args:
        settings: Names the broker.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._client = AsyncClient(**{name: getattr(settings, name) for name in ClientSettings.model_fields})
        self._letters = DeadLetters(settings)
        self._count = 0
        self._newest: list[dict[str, Any]] = []

    async def read(self) -> dict[str, Any]:
        """The fleet and the dead letters as they are now, ready for JSON.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        fleet = await self._client.fleet()
        letters = await asyncio.to_thread(self._look_at_letters)
        return {"fleet": fleet.model_dump(mode="json"), "dead_letters": letters}

    def _look_at_letters(self) -> dict[str, Any]:
        count = self._letters.count()
        if count != self._count:  # each may hold a prompt of a megabyte, so they are not read at each look
            self._newest = [_shown(letter) for letter in self._letters.newest(SHOWN_LETTERS)]
            self._count = count
        return {"count": count, "newest": self._newest}


def _shown(letter: DeadLetter) -> dict[str, Any]:
    """A letter without its prompt."""
    return {
        "task": letter.task,
        "model": letter.model,
        "reason": letter.reason,
        "workers": [lost.worker for lost in letter.history],
        "stopped_at": letter.stopped_at,
    }


class FleetPage(BaseHandler):  # type: ignore[misc]
    """``/fleet``."""

    @web.authenticated
    def get(self) -> None:
        """Shows the page, which then asks for its data by itself."""
        self.render("fleet.html", version=version("promptmill"))


class FleetData(BaseHandler):  # type: ignore[misc]
    """``/fleet/data``: what the page shows, as JSON."""

    def initialize(self, source: FleetSource) -> None:
        """Called by Tornado for each request."""
        self._source = source

    @web.authenticated
    async def get(self) -> None:
        """Writes it; 503 and a sentence if the broker does not answer."""
        try:
            data = await self._source.read()
        except PromptmillError as error:
            self.set_status(503)
            self.finish({"error": str(error)})
            return
        self.finish({**data, "pages": self._pages()})

    def _pages(self) -> dict[str, str]:
        """Flower's page of each worker, by the name that the fleet knows the worker by."""
        return {
            info["stats"]["worker"]: self.reverse_url("worker", name)
            for name, info in self.application.workers.items()
            if "worker" in info.get("stats", {})
        }
