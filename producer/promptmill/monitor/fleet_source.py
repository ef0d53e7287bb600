"""What the fleet page shows, ready for JSON."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from promptmill.async_client import AsyncClient
from promptmill.asynchronous import AsyncTransport
from promptmill.broker_errors import broker_errors
from promptmill.dead_letters import DeadLetter, DeadLetters
from promptmill.history import EVERY_S, HistoryPoint, read_history
from promptmill.monitor.settings import MonitorSettings
from promptmill.names import Names
from promptmill.settings import ClientSettings

__all__ = ["FleetSource"]

#: How many dead letters the page shows.
SHOWN_LETTERS = 10


class FleetSource:
    """Asks the broker. Belongs to the event loop on which it is first asked.

    All methods raise BrokerUnavailableError if the broker does not answer.

    Args:
        settings: Names the broker.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings
        self._names = Names(settings.key_prefix)
        self._client = AsyncClient(**{name: getattr(settings, name) for name in ClientSettings.model_fields})
        self._transport = AsyncTransport.open(settings, settings.broker_timeout_s)
        self._letters = DeadLetters(settings)
        self._newest: tuple[int, list[dict[str, Any]]] = (0, [])
        self._history: tuple[float, dict[str, Any]] = (0.0, {})

    async def now(self) -> dict[str, Any]:
        """The fleet and the dead letters as they are."""
        fleet = await self._client.fleet()
        letters = await asyncio.to_thread(self._look_at_letters)
        return {"at": time.time(), "fleet": fleet.model_dump(mode="json"), "dead_letters": letters}

    async def last_hour(self) -> dict[str, Any]:
        """Times, in seconds since 1970, and for each model as many values of each kind; null where it was not there."""
        read_at, history = self._history
        if time.monotonic() > read_at + EVERY_S / 2 or not history:  # it is the same for all who look
            with broker_errors(self._settings):
                history = _columns(await read_history(self._transport, self._names))
            self._history = (time.monotonic(), history)
        return history

    def _look_at_letters(self) -> dict[str, Any]:
        count, newest = self._letters.count(), self._newest
        if count != newest[0]:  # each may hold a prompt of a megabyte, so they are not read at each look
            newest = self._newest = (count, [_shown(letter) for letter in self._letters.newest(SHOWN_LETTERS)])
        return {"count": count, "newest": newest[1]}


def _columns(points: list[HistoryPoint]) -> dict[str, Any]:
    models: dict[str, dict[str, list[float | None]]] = {}
    for index, point in enumerate(points):
        for name, model in point.models.items():
            columns = models.setdefault(name, {kind: [None] * len(points) for kind in ("tokens_per_s", "queued")})
            columns["tokens_per_s"][index] = model.tokens_per_s
            columns["queued"][index] = max(0, model.unfinished - model.in_flight)
    return {"times": [round(point.at, 1) for point in points], "models": models}


def _shown(letter: DeadLetter) -> dict[str, Any]:
    """A letter without its prompt."""
    return {
        "task": letter.task,
        "model": letter.model,
        "reason": letter.reason,
        "workers": [lost.worker for lost in letter.history],
        "stopped_at": letter.stopped_at,
    }
