"""What a client has submitted and still waits for."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

from promptmill.ledger import Entry

__all__ = ["Submission", "Waiter"]


class Waiter(Protocol):
    """Who is told of a submission's answers."""

    def __call__(self, submission: Submission, positions: list[int]) -> None:
        """``positions`` of ``submission`` have answers now, for the first time; none when it is abandoned.

        Called on the reply reader's thread, or on the one that closes the client.
        """


class Submission:
    """One record on its way: what was entered, and the answers so far. Thread-safe.

    Args:
        entry: What was entered; entered again, under the same id, if the broker has forgotten it.
        on_answers: Told of each position once.
    """

    def __init__(self, entry: Entry, on_answers: Waiter | None = None) -> None:
        self.entry = entry
        self.answers: dict[int, bytes] = {}
        #: Whether nobody waits for its answers any more: its client was closed, or it could not be entered.
        self.abandoned = False
        #: Since when the broker is known to have it, on the monotonic clock.
        self.entered_at = math.inf
        #: When the broker last told of it, asked or not, on the monotonic clock; not before it is entered.
        self.checked_at = math.inf
        self._on_answers = on_answers
        self._arrived = threading.Condition()

    def mark_entered(self) -> None:
        """The broker has it."""
        self.entered_at = self.checked_at = time.monotonic()

    @property
    def ends_at(self) -> float:
        """Its deadline, on the monotonic clock."""
        return self.entered_at + self.entry.timeout_s

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
        if news:
            self.checked_at = time.monotonic()
        if news and self._on_answers is not None:
            self._on_answers(self, news)

    def abandon(self) -> None:
        """Ends all waiting."""
        with self._arrived:
            self.abandoned = not self.complete
            self._arrived.notify_all()
        if self.abandoned and self._on_answers is not None:
            self._on_answers(self, [])

    def wait(self, position: int, timeout_s: float | None) -> bytes | None:
        """The answer at ``position``; None if it isn't there within ``timeout_s`` seconds, or when abandoned."""
        with self._arrived:
            self._arrived.wait_for(lambda: position in self.answers or self.abandoned, timeout_s)
            return self.answers.get(position)
