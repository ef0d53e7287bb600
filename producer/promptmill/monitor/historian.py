"""Adds to the fleet's history while the monitor lives, also where no worker does."""

from __future__ import annotations

import logging
import threading
from typing import Self

import redis

from promptmill.blocking import BlockingTransport, run
from promptmill.history import EVERY_S, add_point
from promptmill.names import Names
from promptmill.settings import Settings

__all__ = ["Historian"]

log = logging.getLogger(__name__)


class Historian:
    """A thread that tries to add a point each twenty seconds. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._transport = BlockingTransport.open(settings, EVERY_S)
        self._names = Names(settings.key_prefix)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="promptmill history", daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                run(add_point(self._transport, self._names))
            except redis.RedisError as error:
                log.debug("no point was added to the history (%s)", type(error).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        run(self._transport.close())
