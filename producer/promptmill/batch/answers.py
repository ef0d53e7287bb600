"""Where the answers of a batch go, and which lines have one there already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from promptmill.batch.answer import Answer, answer_line
from promptmill.batch.answer_file import AnswerFile
from promptmill.batch.answer_stream import AnswerStream
from promptmill.batch.answer_table import MAX_LINES, AnswerTable, State
from promptmill.batch.input_file import InputFile
from promptmill.batch.line import Ticket
from promptmill.batch.options import BatchOptions
from promptmill.batch.ownership import check_file, check_line
from promptmill.errors import InvalidRequestError

__all__ = ["Answers"]


class Answers:
    """The output, and the file of errors if there is one. Belongs to one thread.

    Args:
        source: The lines that are answered.
        options: What to run, and how.

    Raises:
        InvalidRequestError: a file is in use, or was not written by a batch, or in the other format, or by a batch of
            other lines; ``source`` is damaged; standard output is closed.
        OSError: a file can't be opened.
    """

    def __init__(self, source: InputFile, options: BatchOptions) -> None:
        self._source = source
        self._simple = options.simple
        self._retry_failed = options.retry_failed
        self._in_output, self._in_errors = AnswerTable(), AnswerTable()
        self._output = _open(options.output)
        try:
            self._errors = None if options.errors is None else _open(options.errors)
            self._load()
            self._check_source()
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

    def settled(self, number: int, checksum: int) -> int | None:
        """The digest with which a line, as it is written, was answered, or has failed and is left so; else None.

        Whatever its request is now, that is, with other options or a model that is not served any more.
        """
        if self._in_output.checksum(number, State.ANSWERED) == checksum:
            return self._in_output.digest(number)
        if not self._retry_failed:
            for table in (self._in_output, self._in_errors):
                if table.checksum(number, State.FAILED) == checksum:
                    return table.digest(number)
        return None

    def recall(self, ticket: Ticket) -> State:
        """The same for this run, in which failures may not count; all else that is known of the line is forgotten.

        Raises:
            InvalidRequestError: the line came through a pipe, and an answer to another line would be forgotten.
        """
        number, digest = ticket.number, ticket.digest
        if isinstance(self._output, AnswerFile) and not self._source.is_lasting:
            check_line(self._output.path.name, self._in_output, ticket, self._source)
        found = self.state(number, digest)
        if found is State.FAILED and self._retry_failed:
            found = State.OPEN
        is_told = found is State.OPEN  # then no row is kept, else one
        for table in (self._in_errors, self._in_output):
            if is_told or table.state(number, digest) is not found:
                table.drop(number, number + 1)
            else:
                is_told = True
        return found

    def forget(self, first: int, end: int | None = None) -> None:
        """Forgets the lines from ``first`` up to, and without, ``end``, or all from there, which the input lacks.

        Not those that a pipe lacks: it may have been cut off.
        """
        if self._source.is_lasting:
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
        table.put(ticket.number, ticket.checksum, ticket.digest, state, place)

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
                for row in self._read(sink):
                    table.put(*row)
        if not isinstance(self._errors, AnswerFile):
            return
        if self._in_errors.count(State.ANSWERED):
            raise InvalidRequestError(
                f"{self._errors.path.name} has answers, so it is no file of errors: name another one with --errors"
            )
        if isinstance(self._output, AnswerStream):  # failures of an earlier run, whose answers are gone
            self._in_errors.drop(0)
            self._errors.empty()

    def _check_source(self) -> None:
        if not self._source.is_lasting:
            return
        if isinstance(self._output, AnswerFile) and self.answered:
            check_file(self._output.path.name, self._in_output, State.ANSWERED, self._source)
        elif isinstance(self._errors, AnswerFile):  # beside answers, failed lines may all have been mended
            check_file(self._errors.path.name, self._in_errors, State.FAILED, self._source)

    def _read(self, file: AnswerFile) -> Iterator[tuple[int, int, int, State, int]]:
        """The row of each line of the file."""
        for place, fields in file.lines():
            told = fields.get("promptmill")
            try:
                number = told["line"]  # type: ignore[index]
                checksum, digest = (int(told[name], 16) for name in ("checksum", "digest"))  # type: ignore[index]
                is_known = 0 < number <= MAX_LINES and 0 <= checksum < 1 << 16 and 0 <= digest < 1 << 64
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
            failed = fields.get("error") or response.get("status_code", 200) != 200
            yield number, checksum, digest, State.FAILED if failed else State.ANSWERED, place


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
