"""What a client has submitted and still waits for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from promptmill.ledger import Entry
from promptmill.transport import Signal

__all__ = ["Submission", "Waiter"]


class Waiter(Protocol):
    """Who is told of a submission's answers."""

    def __call__(self, submission: Submission, positions: list[int]) -> None:
        """``positions`` of ``submission`` have answers now, for the first time; none when it is abandoned.

        Called by the reply reader, on its own thread if it has one, or by the one that closes the client.
        """


class Submission:
    """One record on its way: what was entered, and the answers so far. Thread-safe.

    Args:
        entry: What was entered; entered again, under the same id, if the broker has forgotten it.
        signal: Makes signals for those who wait.
        on_answers: Told of each position once.
    """

    def __init__(self, entry: Entry, signal: Callable[[], Signal], on_answers: Waiter | None = None) -> None:
        self.entry = entry
        self.answers: dict[int, bytes] = {}
        #: Whether nobody waits for its answers any more: its client was closed, or it could not be entered.
        self.abandoned = False
        #: Since when the broker is known to have it, on the monotonic clock.
        self.entered_at = math.inf
        #: When the broker last told of it, asked or not, on the monotonic clock; not before it is entered.
        self.checked_at = math.inf
        self._on_answers = on_answers
        self._signal = signal
        #: One for each that waits: set when something has arrived.
        self._waiting: list[Signal] = []

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
        """Takes answers in; those that are there already change nothing. Called by the reply reader only."""
        news = [position for position in answers if position not in self.answers]
        if not news:
            return
        self.answers.update({position: answers[position] for position in news})
        self.checked_at = time.monotonic()
        self._tell(news)

    def abandon(self) -> None:
        """Ends all waiting."""
        self.abandoned = not self.complete
        if self.abandoned:
            self._tell([])

    def _tell(self, news: list[int]) -> None:
        for signal in list(self._waiting):
            signal.set()
        if self._on_answers is not None:
            self._on_answers(self, news)

    async def wait(self, position: int, timeout_s: float | None) -> bytes | None:
        """The answer at ``position``; None if it isn't there within ``timeout_s`` seconds, or when abandoned."""
        give_up_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
        arrived = self._signal()
        self._waiting.append(arrived)
        try:
            while position not in self.answers and not self.abandoned:
                arrived.clear()
                if position in self.answers or self.abandoned:  # in between
                    break
                if not await arrived.wait(max(0.0, give_up_at - time.monotonic())):
                    break
        finally:
            self._waiting.remove(arrived)
        return self.answers.get(position)
