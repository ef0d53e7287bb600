"""What this worker has done since it started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from promptmill.errors import PromptmillError, PromptTooLongError, TaskFailedError
from promptmill.protocol import GenerationResult

__all__ = ["Counters"]

#: A longer error is cut off in the worker's record, in characters.
ERROR_LENGTH = 200


class Counters:
    """Totals, and the speed since one last looked. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_at = time.monotonic()
        self._looked_at = self._started_at
        self._tokens_then = (0, 0)
        #: Told each answer, and how long its prompt was queued, in seconds.
        self.on_answer: Callable[[GenerationResult | PromptmillError, float], None] | None = None
        self.prompts_done = 0
        self.prompts_failed = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        #: The last error that no caller is to blame for, and when it was, in seconds since 1970.
        self.last_error = ""
        self.last_error_at: float | None = None

    def count(self, answer: GenerationResult | PromptmillError, queued_s: float) -> None:
        """Counts one answered prompt, which was queued for ``queued_s`` seconds."""
        if self.on_answer is not None:
            self.on_answer(answer, queued_s)
        with self._lock:
            if isinstance(answer, PromptmillError):
                self.prompts_failed += 1
                if isinstance(answer, TaskFailedError) and not isinstance(answer, PromptTooLongError):
                    self.last_error = f"{type(answer).__name__}: {answer.message}"[:ERROR_LENGTH]
                    self.last_error_at = time.time()
            else:
                self.prompts_done += 1
                self.prompt_tokens += answer.usage.prompt_tokens
                self.completion_tokens += answer.usage.completion_tokens

    @property
    def uptime_s(self) -> float:
        """Since the worker started, in seconds."""
        return time.monotonic() - self._started_at

    def tokens_per_s(self, generated: int) -> tuple[float, float]:
        """Tokens of answered prompts and of texts a second since this was last asked.

        Args:
            generated: Tokens of texts so far, also of those that are not answered yet.
        """
        with self._lock:
            now, tokens = time.monotonic(), (self.prompt_tokens, generated)
            elapsed_s = max(now - self._looked_at, 1e-6)
            read, made = ((count - then) / elapsed_s for count, then in zip(tokens, self._tokens_then, strict=True))
            self._looked_at, self._tokens_then = now, tokens
            return read, made
