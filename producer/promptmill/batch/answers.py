"""Where the answers of a batch go, and which lines have one there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptmill.batch.answer import Answer, answer_line
from promptmill.batch.answer_file import AnswerFile
from promptmill.batch.answer_stream import AnswerStream
from promptmill.batch.answer_table import MAX_LINES, AnswerTable, State
from promptmill.errors import InvalidRequestError

__all__ = ["Answers"]

#: The states of the lines that are told in the output.
IN_OUTPUT = (State.ANSWERED, State.FAILED)


class Answers:
    """The output, and the file of errors if there is one. Belongs to one thread.

    Args:
        output: Where answers go; None is standard output.
        errors: Where failed lines go; None: to the output, too.
        simple: Whether lines are short, or as OpenAI has them.
        retry_failed: Count lines that have failed as not answered.

    Raises:
        InvalidRequestError: a file is in use, or was not written by a batch, or in the other format; standard output is
            closed.
        OSError: a file can't be opened.
    """

    def __init__(self, output: Path | None, errors: Path | None, simple: bool, retry_failed: bool) -> None:
        self.table = AnswerTable()
        self._simple = simple
        self._retry_failed = retry_failed
        self._output = _open(output)
        try:
            self._errors = None if errors is None else _open(errors)
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def can_be_resumed(self) -> bool:
        """Whether another run can go on from here."""
        return isinstance(self._output, AnswerFile)

    def add(self, answer: Answer) -> None:
        """Writes what came of a line.

        Raises:
            OSError: it can't be written.
        """
        ticket, state = answer.ticket, State.ANSWERED
        sink = self._output
        if answer.result.error is not None:
            state = State.FAILED if self._errors is None else State.FAILED_APART
            sink = self._errors or self._output
        place = sink.append(answer_line(answer, self._simple))
        self.table.put(ticket.number, ticket.digest, state, place)

    def finish(self, ordered: bool) -> None:
        """Takes away what counts no more: answers of other requests, failures that were tried again.

        Args:
            ordered: Put the answers into the order of the input, too.
        """
        if self._errors is not None:
            self._tidy(self._errors, ordered, State.FAILED_APART)
        self._tidy(self._output, ordered, *IN_OUTPUT)

    def close(self) -> None:
        """Ends the files."""
        for sink in (self._output, getattr(self, "_errors", None)):
            if sink is not None:
                sink.close()

    def _tidy(self, sink: AnswerFile | AnswerStream, ordered: bool, *states: State) -> None:
        if isinstance(sink, AnswerStream):
            return
        if ordered and not self.table.is_in_order(*states):
            sink.rewrite(self.table.places(*states), None)
        elif sink.line_count != self.table.count(*states):
            sink.rewrite(None, lambda place, fields: self.table.holds(fields["promptmill"]["line"], place, *states))

    def _load(self) -> None:
        if isinstance(self._output, AnswerStream):
            if isinstance(self._errors, AnswerFile):  # failures of an earlier run, whose answers are gone
                for _ in self._read(self._errors):
                    pass
                self._errors.empty()
            return
        for place, number, digest, failed in self._read(self._output):
            self._put(number, digest, State.FAILED if failed else State.ANSWERED, place)
        if isinstance(self._errors, AnswerFile):
            for place, number, digest, _ in self._read(self._errors):
                if not self.table.is_answered(number):
                    self._put(number, digest, State.FAILED_APART, place)

    def _put(self, number: int, digest: int, state: State, place: int) -> None:
        self.table.put(number, digest, State.OPEN if self._retry_failed and state != State.ANSWERED else state, place)

    def _read(self, file: AnswerFile) -> Any:
        """(place, line number, digest, whether it failed) of each line of the file."""
        for place, fields in file.lines():
            told = fields.get("promptmill")
            try:
                number, digest = told["line"], int(told["digest"], 16)  # type: ignore[index]
                is_known = 0 < number <= MAX_LINES and 0 <= digest < 1 << 64
            except (LookupError, TypeError, ValueError):
                is_known = False
            if not is_known:
                raise file.stranger()
            if ("response" in fields) == self._simple:
                found, way_out = (
                    ("lines in OpenAI's format", "no --simple") if self._simple else ("simple lines", "--simple")
                )
                raise InvalidRequestError(f"{file.path.name} has {found}: name another file, or give {way_out}")
            response = fields.get("response") or {}
            yield place, number, digest, bool(fields.get("error")) or response.get("status_code", 200) != 200


def _open(path: Path | None) -> AnswerFile | AnswerStream:
    if path is None or (path.exists() and not path.is_file()):
        return AnswerStream(path)
    return AnswerFile(path)
