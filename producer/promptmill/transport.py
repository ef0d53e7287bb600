"""The way out of the library's core: to the broker, to the clock, and to those who wait.

The core is written once, as coroutines over a ``Transport``: sessions, tasks, streams and maps. On ``AsyncTransport``
they run on asyncio's loop, under ``AsyncClient``. On ``BlockingTransport`` all that they await blocks, so that
``blocking.run`` runs each to its end at once, under ``Client`` and on a worker's threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

__all__ = ["Command", "Job", "Signal", "Transport"]

#: A command of the broker and its arguments.
Command = tuple[Any, ...]


class Signal(Protocol):
    """Is set or not; may be waited for."""

    def is_set(self) -> bool:
        """Whether it is set."""

    def set(self) -> None:
        """Sets it, and wakes those who wait."""

    def clear(self) -> None:
        """Takes it back."""

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until it is set, at most ``timeout_s`` seconds; returns whether it is."""


class Job(Protocol):
    """Work that goes on beside the caller's."""

    async def join(self, timeout_s: float) -> None:
        """Waits for its end, at most ``timeout_s`` seconds."""


class Transport(ABC):
    """One way to one broker."""

    @abstractmethod
    async def execute(self, commands: Sequence[Command], *, waits: bool = False) -> list[Any]:
        """The replies to ``commands``, in one round trip.

        Args:
            commands: At least one; a driver's error for one of them is raised.
            waits: Whether they block in the broker, for news.

        Raises:
            redis.RedisError: a driver's error.
        """

    @abstractmethod
    def signal(self) -> Signal:
        """A new signal, not set."""

    @abstractmethod
    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> Job:
        """Starts ``work`` beside the caller's; it does not keep the process alive."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the connections."""
