"""What a user says of a ``map``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from promptmill.chunk_size import MAX_CHUNK_SIZE
from promptmill.errors import InvalidRequestError
from promptmill.map_progress import MapProgress
from promptmill.names import PriorityName
from promptmill.protocol import GenerationRequest

__all__ = ["Item", "MapOptions", "OnError"]

#: A prompt, or what is wrong with it.
Item = GenerationRequest | InvalidRequestError

OnError = Literal["raise", "yield"]


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a map runs; see ``Verbs.map``."""

    model: str | None
    require_worker: bool
    ordered: bool
    on_error: OnError
    max_in_flight: int | None
    chunk_size: int | None
    priority: PriorityName
    timeout_s: float | None
    on_progress: Callable[[MapProgress], None] | None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        if self.on_error not in ("raise", "yield"):
            raise InvalidRequestError(f"on_error: {self.on_error!r} is not allowed: it is 'raise' or 'yield'")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise InvalidRequestError(f"max_in_flight: {self.max_in_flight!r} is not allowed (range: ≥ 1)")
        if self.chunk_size is not None and not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidRequestError(
                f"chunk_size: {self.chunk_size!r} is not allowed (range: ≥ 1 and ≤ {MAX_CHUNK_SIZE})"
            )
