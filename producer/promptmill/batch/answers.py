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


class Answers:
    """The output, and the file of errors if there is one. Belongs to one thread.

    Args:
        output: Where answers go; None is standard output.
        errors: Where failed lines go; None: to the output, too.
        simple: Whether lines are short, or as OpenAI has them.
        retry_failed: Count lines that have failed in an earlier run as not answered.

    Raises:
        InvalidRequestError: a file is in use, or was not written by a batch, or in the other format; standard output is
            closed.
        OSError: a file can't be opened.
    """

    def __init__(self, output: Path | None, errors: Path | None, simple: bool, retry_failed: bool) -> None:
        self._simple = simple
        self._retry_failed = retry_failed
        self._in_output, self._in_errors = AnswerTable(), AnswerTable()
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

    @property
    def answered(self) -> int:
        """How many lines have an answer that is no failure, of whatever request."""
        return self._in_output.count(State.ANSWERED)

    def state(self, number: int, digest: int) -> State:
        """What is known of a line, if its request has this digest."""
        return self._in_output.state(number, digest) or self._in_errors.state(number, digest)

    def recall(self, number: int, digest: int) -> State:
        """The same for this run, in which failures may not count; all else that is known of the line is forgotten."""
        found = self.state(number, digest)
        if found is State.FAILED and self._retry_failed:
            found = State.OPEN
        is_told = found is State.OPEN
        for table in (self._in_errors, self._in_output):
            if is_told or table.state(number, digest) is not found:
                table.drop(number, number + 1)
            else:
                is_told = True
        return found

    def forget(self, first: int, end: int | None = None) -> None:
        """Forgets the lines from ``first`` up to, and without, ``end``, or all from there: the input lacks them."""
        self._in_output.drop(first, end)
        self._in_errors.drop(first, end)

    def add(self, answer: Answer) -> None:
        """Writes what came of a line.

        Raises:
            OSError: it can't be written.
        """
        ticket = answer.ticket
        state = State.ANSWERED if answer.result.error is None else State.FAILED
        sink, table = self._output, self._in_output
        if state is State.FAILED and self._errors is not None:
            sink, table = self._errors, self._in_errors
        place = sink.append(answer_line(answer, self._simple))
        table.put(ticket.number, ticket.digest, state, place)

    def finish(self, ordered: bool) -> None:
        """Takes away what counts no more: answers of other requests, failures that were tried again.

        Args:
            ordered: Put the answers into the order of the input, too.
        """
        if self._errors is not None:
            _tidy(self._errors, self._in_errors, ordered)
        _tidy(self._output, self._in_output, ordered)

    def close(self) -> None:
        """Ends the files."""
        for sink in (self._output, getattr(self, "_errors", None)):
            if sink is not None:
                sink.close()

    def _load(self) -> None:
        for sink, table in ((self._output, self._in_output), (self._errors, self._in_errors)):
            if isinstance(sink, AnswerFile):
                for place, number, digest, failed in self._read(sink):
                    table.put(number, digest, State.FAILED if failed else State.ANSWERED, place)
        if isinstance(self._output, AnswerStream) and isinstance(self._errors, AnswerFile):
            self._in_errors.drop(0)  # failures of an earlier run, whose answers are gone
            self._errors.empty()

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


def _tidy(sink: AnswerFile | AnswerStream, table: AnswerTable, ordered: bool) -> None:
    if isinstance(sink, AnswerStream):
        return
    if ordered and not table.is_in_order():
        sink.rewrite(table.places(), None)
    elif sink.line_count != table.count(State.ANSWERED, State.FAILED):
        sink.rewrite(None, lambda place, fields: table.holds(fields["promptmill"]["line"], place))


def _open(path: Path | None) -> AnswerFile | AnswerStream:
    if path is None or (path.exists() and not path.is_file()):
        return AnswerStream(path)
    return AnswerFile(path)
