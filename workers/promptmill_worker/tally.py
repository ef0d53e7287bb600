"""What came of the prompts of one claim, in numbers: what a task shows in Flower in place of prompts and answers."""

from __future__ import annotations

from collections import Counter

from promptmill.errors import PromptmillError
from promptmill.protocol import GenerationResult

__all__ = ["Tally"]


class Tally:
    """Counts answers. Belongs to the pool thread that works the claim off."""

    def __init__(self) -> None:
        self.prompts = self._prompt_tokens = self._completion_tokens = 0
        self._finish_reasons: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def count(self, answer: GenerationResult | PromptmillError) -> None:
        """Counts one answered prompt."""
        self.prompts += 1
        if isinstance(answer, PromptmillError):
            self._errors[type(answer).__name__] += 1
            return
        self._prompt_tokens += answer.usage.prompt_tokens
        self._completion_tokens += answer.usage.completion_tokens
        self._finish_reasons.update(choice.finish_reason for choice in answer.choices)

    def __str__(self) -> str:
        """Tokens of prompts and of answers, finish reasons, errors; and how often each came, unless that was once."""
        tokens = f"{self._prompt_tokens} + {self._completion_tokens} tokens"
        errors = [f"errors: {_counted(self._errors)}"] if self._errors else []
        return ", ".join([tokens, *([_counted(self._finish_reasons)] if self._finish_reasons else []), *errors])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(what if count == 1 else f"{count} {what}" for what, count in sorted(counter.items()))
