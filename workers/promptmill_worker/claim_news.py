"""What can happen to a claim while it is worked off."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from promptmill.protocol import GenerationResult

__all__ = ["Done", "Lost", "Message", "Overdue", "PutBack", "Settled", "Start"]


@dataclass(frozen=True)
class Start:
    """The prompts may go into the engine."""


@dataclass(frozen=True)
class Done:
    """The engine is done with one prompt."""

    position: int
    future: Future[GenerationResult]


@dataclass(frozen=True)
class Settled:
    """These prompts were answered by somebody else: cancelled."""

    positions: tuple[int, ...]


@dataclass(frozen=True)
class Overdue:
    """The task's deadline has passed."""


@dataclass(frozen=True)
class Lost:
    """The lease is gone."""


@dataclass(frozen=True)
class PutBack:
    """The worker stops."""


Message = Start | Done | Settled | Overdue | Lost | PutBack
