"""What is said to a person: coloured on a terminal, plain elsewhere and with NO_COLOR, never cut by its width."""

from __future__ import annotations

import sys

import click
from rich.console import Console, RenderableType

__all__ = ["confirmed", "counted", "say", "show", "table_console"]


def say(message: str, style: str | None = None) -> None:
    """Writes a line to standard error, as it is."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False).print(message, style=style)


def counted(count: int, what: str) -> str:
    """``1 prompt``, ``2,000 prompts``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def table_console() -> Console:
    """Standard output for tables; one that goes to a file or to grep is as wide as its names."""
    return Console(width=None if sys.stdout.isatty() else 1000)


def show(what: RenderableType) -> None:
    """Prints a table to standard output."""
    table_console().print(what)


def confirmed(question: str, otherwise: str) -> bool:
    """Asks on standard error; where nobody answers yes, says ``otherwise``."""
    try:
        if click.confirm(question, err=True):
            return True
    except click.Abort:  # nobody is there to answer
        click.echo(err=True)
    say(f"promptmill: {otherwise}; with --yes it isn't asked")
    return False
