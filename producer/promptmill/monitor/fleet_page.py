"""The fleet page, in Flower's look and behind its login."""

from __future__ import annotations

from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any

from flower.views import BaseHandler
from tornado import web

from promptmill.errors import PromptmillError
from promptmill.monitor.fleet_source import FleetSource

__all__ = ["FleetData", "FleetHistory", "FleetPage"]


class FleetPage(BaseHandler):  # type: ignore[misc]
    """``/fleet``."""

    @web.authenticated
    def get(self) -> None:
        """Shows the page, which then asks for its data by itself."""
        self.render("fleet.html", version=version("promptmill"))


class _FromSource(BaseHandler):  # type: ignore[misc]
    def initialize(self, source: FleetSource) -> None:
        self.source = source

    async def answer(self, asked: Awaitable[dict[str, Any]]) -> None:
        """Answers with what is asked for; with 503 and a sentence if the broker is silent."""
        self.set_header("Cache-Control", "no-store")
        try:
            self.write(await asked)
        except PromptmillError as error:
            self.set_status(503)
            self.write({"error": str(error)})


class FleetData(_FromSource):
    """``/fleet/data``: the fleet as it is, as JSON."""

    @web.authenticated
    async def get(self) -> None:
        """Writes it."""
        await self.answer(self._data())

    async def _data(self) -> dict[str, Any]:
        return {**await self.source.now(), "pages": self._pages()}

    def _pages(self) -> dict[str, str]:
        """Flower's page of each worker, by the name that the fleet knows the worker by."""
        return {
            info["stats"]["worker"]: self.reverse_url("worker", name)
            for name, info in self.application.workers.items()
            if "worker" in info.get("stats", {})
        }


class FleetHistory(_FromSource):
    """``/fleet/history``: the last hour, for the charts."""

    @web.authenticated
    async def get(self) -> None:
        """Writes it."""
        await self.answer(self.source.last_hour())
