"""What a client has submitted and still waits for."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from promptmill.ledger import Entry

__all__ = ["Submission", "Waiter"]


class Waiter(Protocol):
    """Who is told of a submission's answers."""

    def __call__(self, submission: Submission, positions: list[int]) -> None:
        """``positions`` of ``submission`` have answers now, for the first time. Called on the reply reader's thread."""


class Submission:
    """One record on its way: what was entered, and the answers so far. Thread-safe.

    Args:
        entry: What was entered; entered again, under the same id, if the broker has forgotten it.
        on_answers: Told of each position once.
    """

    def __init__(self, entry: Entry, on_answers: Waiter | None = None) -> None:
        self.entry = entry
        self.answers: dict[int, bytes] = {}
        #: On the monotonic clock.
        self.entered_at = time.monotonic()
        #: When the broker was last asked for it, on the monotonic clock.
        self.checked_at = self.entered_at
        self._on_answers = on_answers
        self._arrived = threading.Condition()

    @property
    def complete(self) -> bool:
        """Whether every prompt has its answer."""
        return len(self.answers) == self.entry.count

    def add(self, answers: dict[int, bytes]) -> None:
        """Takes answers in; those that are there already change nothing."""
        with self._arrived:
            news = [position for position in answers if position not in self.answers]
            self.answers.update({position: answers[position] for position in news})
            self._arrived.notify_all()
        if news and self._on_answers is not None:
            self._on_answers(self, news)

    def wait(self, position: int, timeout_s: float | None) -> bytes | None:
        """The answer at ``position``; None if it isn't there within ``timeout_s`` seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: position in self.answers, timeout_s)
            return self.answers.get(position)
