"""Running a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from typing import Self

from promptmill.batch.answer import Answer
from promptmill.batch.answer_table import State
from promptmill.batch.answers import Answers
from promptmill.batch.input_file import InputFile
from promptmill.batch.line import Line, Ticket, read_line
from promptmill.batch.model_choice import ModelChoice
from promptmill.batch.options import BatchOptions
from promptmill.batch.seen_ids import SeenIds
from promptmill.client import Client
from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.source import NotYet

__all__ = ["Batch"]


class Batch:
    """One run over a file of prompts. A context manager; belongs to one thread.

    Answers are written as they come. A line whose answer is in the output already, known by its number and the digest
    of its request, is not run again.

    Args:
        client: Runs the prompts.
        options: What to run, and how.

    Raises:
        BrokerUnavailableError: the broker does not answer; no file was touched.
        InvalidRequestError: a file is in use, or no file of answers, or has those of another batch, or is damaged, or
            compressed in a way that can't be read here.
        OSError: a file can't be opened.
    """

    def __init__(self, client: Client, options: BatchOptions) -> None:
        self._client = client
        self._options = options
        self._input = InputFile(options.input)
        self._models = ModelChoice(client, options.ignore_model)
        self._answers = Answers(self._input, options)
        self._seen = SeenIds()
        self._tickets: dict[int, Ticket] = {}
        self._has_other_models = False
        self._on_answer: Callable[[Answer], None] = lambda _: None
        #: Lines that were read, without empty ones.
        self.lines = 0
        #: Lines that earlier runs have answered, and that have failed there and are left so.
        self.answered_before = 0
        self.failed_before = 0
        #: Lines that have an id which an earlier line has, too.
        self.repeated_ids = 0

    @property
    def can_be_resumed(self) -> bool:
        """Whether another run can go on where this one ends."""
        return self._answers.can_be_resumed

    def count(self) -> int | None:
        """How many lines the input has; None of a pipe.

        Raises:
            InvalidRequestError: it is damaged.
        """
        return self._input.count()

    def run(self, on_answer: Callable[[Answer], None], total: int | None = None) -> None:
        """Runs what is not answered yet. Ended early, it cancels what is in flight; the files can be gone on with.

        Args:
            on_answer: Called with each answer once it is written; those of wrong lines among them.
            total: How many lines there are, if that is known.

        Raises:
            PromptmillError: as ``Client.map``; a failed prompt is no reason to.
            OSError: an answer can't be written.
        """
        self._on_answer = on_answer
        expected = None if total is None else max(0, total - self._answers.answered)
        self._run_one_model(self._first_reading(), expected)
        while self._has_other_models:
            self._has_other_models = False
            self._run_one_model(self._open_lines(), None)
        self._answers.finish(self._options.ordered)

    def _run_one_model(self, lines: Iterator[Line | NotYet], expected: int | None) -> None:
        """Runs those lines that are for the same model as the first one."""
        first = next((line for line in lines if not isinstance(line, NotYet)), None)
        if first is None:
            return
        results = self._client.map_requests(
            self._requests(chain([first], lines), first.model),
            model=first.model,
            ordered=False,
            max_in_flight=self._options.max_in_flight,
            on_error="yield",
            priority=self._options.priority,
            timeout_s=self._options.timeout_s,
            total=expected,
        )
        with closing(results):  # at once, while the client is still open
            for result in results:
                self._answer(self._tickets.pop(result.index), result)

    def _requests(
        self, lines: Iterator[Line | NotYet], model: str
    ) -> Iterator[GenerationRequest | InvalidRequestError | NotYet]:
        """What to run on ``model``; other lines are for another reading of the file."""
        sent = 0
        for line in lines:
            if isinstance(line, NotYet):
                yield line
            elif line.model == model:
                self._tickets[sent] = line.ticket
                sent += 1
                yield line.request
            elif self._input.is_lasting:
                self._has_other_models = True
            else:
                self._refuse(
                    line.ticket,
                    InvalidRequestError(
                        f"model: {self._input.name} is read once, and its first line is for {model!r}: put lines for "
                        "another model into another file"
                    ),
                )

    def _first_reading(self) -> Iterator[Line | NotYet]:
        """The lines to run; all lines are counted, and answers that belong to none of them are dropped."""
        last = 0
        for line in self._read():
            if isinstance(line, NotYet):
                yield line
                continue
            ticket = line.ticket
            self._answers.forget(last + 1, ticket.number)
            last = ticket.number
            self.lines += 1
            if ticket.custom_id is not None:
                self.repeated_ids += not self._seen.add(ticket.custom_id)
            state = self._answers.recall(ticket)
            self.answered_before += state is State.ANSWERED
            self.failed_before += state is State.FAILED
            if state is State.OPEN:
                yield from self._runnable(line)
        self._answers.forget(last + 1)

    def _open_lines(self) -> Iterator[Line]:
        for line in self._read():
            if (
                not isinstance(line, NotYet)
                and self._answers.state(line.ticket.number, line.ticket.digest) is State.OPEN
            ):
                yield from self._runnable(line)

    def _read(self) -> Iterator[Line | NotYet]:
        for found in self._input.lines():
            if isinstance(found, NotYet):
                yield found
            else:
                yield read_line(*found, self._options.lines, self._models, self._answers.settled)

    def _runnable(self, line: Line) -> Iterator[Line]:
        if isinstance(line.request, InvalidRequestError):
            self._refuse(line.ticket, line.request)
        else:
            yield line

    def _refuse(self, ticket: Ticket, error: InvalidRequestError) -> None:
        self._answer(ticket, GenerationResult(error=error))

    def _answer(self, ticket: Ticket, result: GenerationResult) -> None:
        answer = Answer(ticket, result)
        self._answers.add(answer)
        self._on_answer(answer)

    def close(self) -> None:
        """Ends the files."""
        self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
