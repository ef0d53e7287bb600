"""The client on asyncio."""

from __future__ import annotations

from typing import Any, Self

from promptmill.asynchronous import AsyncTransport
from promptmill.core import Verbs
from promptmill.session import Session
from promptmill.settings import ClientSettings

__all__ = ["AsyncClient"]


class AsyncClient(Verbs):
    """``Client`` for asyncio: the same verbs with the same arguments, awaited. An asynchronous context manager.

    ``stream`` and ``map`` are iterated with ``async for``; ``task`` asks nobody and isn't awaited. A client belongs to
    the event loop on which it is first used.

    Args:
        broker_url: See ``Client``.
        model: See ``Client``.
        settings: Other fields of ``ClientSettings`` by name.

    Raises:
        InvalidSettingError: a setting has a value that means nothing.
    """

    def __init__(self, broker_url: str | None = None, *, model: str | None = None, **settings: Any) -> None:
        self.settings = ClientSettings.read(broker_url=broker_url, model=model, **settings)
        super().__init__(Session(self.settings, AsyncTransport.open))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
