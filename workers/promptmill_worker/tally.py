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

    def shown(self) -> dict[str, str | int]:
        """The numbers by name; reasons and errors with how often each came, unless that was once."""
        numbers: dict[str, str | int] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
        }
        for name, counted in (("finish_reason", self._finish_reasons), ("errors", self._errors)):
            if counted:
                numbers[name] = ", ".join(_times(what, count) for what, count in sorted(counted.items()))
        return numbers


def _times(what: str, count: int) -> str:
    return what if count == 1 else f"{count} {what}"
