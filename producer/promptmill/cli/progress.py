"""Progress of many prompts: a bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from promptmill.protocol import GenerationResult

__all__ = ["PromptProgress", "duration"]

#: How often a plain line is written where there is no terminal, in seconds.
LINE_EVERY_S = 10.0


class PromptProgress:
    """Counts results and shows how far they are. A context manager; belongs to one thread.

    Args:
        total: How many prompts there will be; None if nobody knows.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.prompts = 0
        #: Prompts that had their result before.
        self.before = 0
        self.errors = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._console = Console(stderr=True)
        self._started_at = self._line_at = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._row = self._bar.add_task("", total=total, speed="")

    def count(self, result: GenerationResult, before: int = 0) -> None:
        """Counts one result; ``before`` prompts had theirs before."""
        self.prompts += 1
        self.before = before
        self.errors += result.error is not None
        self.prompt_tokens += result.usage.prompt_tokens
        self.completion_tokens += result.usage.completion_tokens
        self._bar.update(self._row, completed=self.before + self.prompts, speed=self._speed())
        if not self._console.is_terminal and time.monotonic() - self._line_at >= LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._line()

    def note(self, text: str) -> None:
        """Shows a line of text, above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def elapsed_s(self) -> float:
        """Since the start, in seconds."""
        return time.monotonic() - self._started_at

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second, so far."""
        return self.completion_tokens / max(self.elapsed_s, 1e-6)

    @property
    def left_s(self) -> float | None:
        """How long the rest will take at the pace so far, in seconds; None if nobody knows."""
        if self.total is None or not self.prompts:
            return None
        return max(0, self.total - self.before - self.prompts) * self.elapsed_s / self.prompts

    def _speed(self) -> str:
        parts = [f"{self.tokens_per_s:,.0f} tokens/s"]
        if self.errors:
            parts.append(f"{self.errors:,} failed")
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        return ", ".join(parts)

    def _line(self) -> None:
        of_total = f" of {self.total:,}" if self.total is not None else ""
        self._console.print(f"{self.before + self.prompts:,}{of_total} prompts, {self._speed()}", highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._line()


def duration(seconds: float) -> str:
    """A time span as one reads it: 7 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
