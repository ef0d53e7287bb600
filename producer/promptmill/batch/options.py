"""What a batch is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from promptmill.batch.line import LineFormat
from promptmill.names import PriorityName

__all__ = ["BatchOptions"]


@dataclass(frozen=True)
class BatchOptions:
    """What to run, and how."""

    #: The file of lines; None is standard input.
    input: Path | None
    #: The file of answers; None is standard output.
    output: Path | None
    #: Failed lines go here; None: to the output, too.
    errors: Path | None = None
    lines: LineFormat = field(default_factory=LineFormat)
    #: Write short lines, not OpenAI's.
    simple: bool = False
    #: When all is done, put the answers into the order of the input.
    ordered: bool = False
    #: Run lines again that have failed in an earlier run.
    retry_failed: bool = False
    #: Have the client's model answer all lines, whatever they name.
    ignore_model: bool = False
    #: See ``Client.map``.
    max_in_flight: int | None = None
    priority: PriorityName = "normal"
    timeout_s: float | None = None
