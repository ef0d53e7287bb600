"""What this worker has done since it started."""

from __future__ import annotations

import threading
import time

from promptmill.errors import PromptmillError
from promptmill.protocol import GenerationResult

__all__ = ["Counters"]


class Counters:
    """Totals, and the speed since one last looked. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_at = time.monotonic()
        self._looked_at = self._started_at
        self._tokens_then = 0
        self.prompts_done = 0
        self.prompts_failed = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def count(self, answer: GenerationResult | PromptmillError) -> None:
        """Counts one answered prompt."""
        with self._lock:
            if isinstance(answer, PromptmillError):
                self.prompts_failed += 1
            else:
                self.prompts_done += 1
                self.prompt_tokens += answer.usage.prompt_tokens
                self.completion_tokens += answer.usage.completion_tokens

    @property
    def uptime_s(self) -> float:
        """Since the worker started, in seconds."""
        return time.monotonic() - self._started_at

    def tokens_per_s(self) -> float:
        """Completion tokens a second since this was last asked."""
        with self._lock:
            now, tokens = time.monotonic(), self.completion_tokens
            speed = (tokens - self._tokens_then) / max(now - self._looked_at, 1e-6)
            self._looked_at, self._tokens_then = now, tokens
            return speed
