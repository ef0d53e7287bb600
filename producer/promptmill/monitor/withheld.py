"""Routes of Flower that the monitor doesn't have."""

from __future__ import annotations

from flower.api import BaseApiHandler
from flower.views.monitor import Metrics
from tornado import web

__all__ = ["ResultsWithheld", "SubmittingWithheld", "WatchedMetrics"]


class ResultsWithheld(BaseApiHandler):  # type: ignore[misc]
    """Results, in Celery's own result backend, are answers."""

    @web.authenticated
    def get(self, *_: str) -> None:
        """Refuses."""
        raise web.HTTPError(403, "the monitor shows no answers: `promptmill task ID`, or whoever submitted it, has it")

    post = get


class SubmittingWithheld(BaseApiHandler):  # type: ignore[misc]
    """Flower would answer with the result, and write the arguments into its log."""

    @web.authenticated
    def post(self, *_: str) -> None:
        """Refuses."""
        raise web.HTTPError(403, "the monitor submits nothing: use `promptmill generate`, or a client")


class WatchedMetrics(Metrics):  # type: ignore[misc]
    """Flower's own metrics; it would show them to everybody."""

    @web.authenticated
    async def get(self) -> None:
        """Writes them."""
        await super().get()
