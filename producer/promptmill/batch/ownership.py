"""Whose answers a file has: in the end a run takes away those of no line, which must not be another batch's."""

from __future__ import annotations

from promptmill.batch.answer_table import AnswerTable, State
from promptmill.batch.input_file import InputFile
from promptmill.batch.line import Ticket, checksum_of
from promptmill.errors import InvalidRequestError
from promptmill.source import NotYet

__all__ = ["check_file", "check_line"]

WAY_OUT = "would be lost: name another file, or move this one away"


def check_file(name: str, table: AnswerTable, state: State, source: InputFile) -> None:
    """Makes sure that a file of answers is of this input, though some lines may have changed or gone.

    Args:
        name: The file's.
        table: What it says.
        state: Of which lines: those that are answered, or have failed.
        source: The input, which can be read more than once.

    Raises:
        InvalidRequestError: less than half of these lines are in ``source`` as they were; or that is damaged.
    """
    lines = (found for found in source.lines() if not isinstance(found, NotYet))
    same = sum(table.checksum(number, state) == checksum_of(raw) for number, raw in lines)
    if 2 * same < (there := table.count(state)):
        kind = "answers" if state is State.ANSWERED else "failed lines"
        raise InvalidRequestError(
            f"{name} has {there:,} {kind}, and {source.name} has {same:,} of their lines: the rest, perhaps another "
            f"batch's, {WAY_OUT}"
        )


def check_line(name: str, table: AnswerTable, ticket: Ticket, source: InputFile) -> None:
    """The same for a line of a pipe, which is read only once, and told by its first line already.

    Raises:
        InvalidRequestError: the file has the answer to another line in its place.
    """
    if table.checksum(ticket.number, State.ANSWERED) not in (None, ticket.checksum):
        raise InvalidRequestError(
            f"line {ticket.number:,} of {source.name} is not the one that {name} has an answer to, which {WAY_OUT}"
        )
