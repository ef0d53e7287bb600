"""How far a ``map`` is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from promptmill.protocol import GenerationResult

__all__ = ["MapProgress"]


@dataclass(frozen=True, slots=True)
class MapProgress:
    """What ``map`` tells ``on_progress``."""

    #: Prompts whose results were yielded, failed ones among them.
    done: int = 0
    failed: int = 0
    #: How many prompts there are in all; None if nobody knows.
    total: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: On the monotonic clock.
    started_at: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_at

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second, since the start."""
        return self.completion_tokens / max(self.elapsed_s, 1e-9)

    def after(self, result: GenerationResult) -> MapProgress:
        """The same, one result further."""
        return replace(
            self,
            done=self.done + 1,
            failed=self.failed + (result.error is not None),
            prompt_tokens=self.prompt_tokens + result.usage.prompt_tokens,
            completion_tokens=self.completion_tokens + result.usage.completion_tokens,
        )
