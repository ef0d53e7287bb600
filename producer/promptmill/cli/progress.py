"""Progress of many prompts: a bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from promptmill.protocol import GenerationResult

__all__ = ["PromptProgress"]

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
        self.errors = 0
        self.completion_tokens = 0
        self._console = Console(stderr=True)
        self._started_at = self._line_at = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._row = self._bar.add_task("", total=total, speed="")

    def count(self, result: GenerationResult) -> None:
        """Counts one result."""
        self.prompts += 1
        self.errors += result.error is not None
        self.completion_tokens += result.usage.completion_tokens
        self._bar.update(self._row, advance=1, speed=self._speed())
        if not self._console.is_terminal and time.monotonic() - self._line_at >= LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._line()

    @property
    def elapsed_s(self) -> float:
        """Since the start, in seconds."""
        return time.monotonic() - self._started_at

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second, so far."""
        return self.completion_tokens / max(self.elapsed_s, 1e-6)

    def _speed(self) -> str:
        return f"{self.tokens_per_s:,.0f} tokens/s" + (f", {self.errors} errors" if self.errors else "")

    def _line(self) -> None:
        of_total = f" of {self.total:,}" if self.total is not None else ""
        self._console.print(f"{self.prompts:,}{of_total} prompts, {self._speed()}", highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._line()
