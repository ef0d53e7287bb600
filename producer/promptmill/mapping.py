"""Running many prompts with few of them in flight."""

from __future__ import annotations

import itertools
import logging
import math
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptmill.errors import (
    BrokerUnavailableError,
    InvalidRequestError,
    PromptmillError,
    QueueFullError,
    ResultTimeoutError,
    TaskCancelledError,
)
from promptmill.protocol import GenerationRequest, GenerationResult, answer_from_wire, answer_to_wire
from promptmill.session import Session
from promptmill.submission import Submission
from promptmill.task import task_id

__all__ = ["Mapping", "run_map"]

log = logging.getLogger(__name__)

#: A chunk that is larger is cut: it has to be sent within a timeout, and each claim of a part has the broker read it.
MAX_CHUNK_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Arrival:
    """One answer, and the place of its prompt."""

    index: int
    task_id: str
    wire: bytes


@dataclass(slots=True)
class _Flight:
    """A submission that is not read to its end."""

    #: Index of each of its prompts.
    indices: list[int]
    #: Prompts whose answers were not read yet.
    left: int


class Mapping:
    """One run of ``Client.map``: a window over an iterable. Belongs to the thread that iterates.

    The first chunk finds out whether the broker answers. Once that one is entered there is something to lose: a broker
    that goes away is waited for.

    Args:
        session: Submits the chunks.
        requests: What to run, or what is wrong with it; read no further than the window reaches.
        model: Served name.
        max_in_flight: Size of the window, in prompts.
        chunk_size: Prompts in one record.
    """

    def __init__(
        self,
        session: Session,
        requests: Iterator[GenerationRequest | InvalidRequestError],
        model: str,
        max_in_flight: int,
        chunk_size: int,
    ) -> None:
        self._session = session
        self._requests = requests
        self._model = model
        self._max_in_flight = max_in_flight
        self._chunk_size = min(chunk_size, max_in_flight)
        #: Filled by the reply reader's thread.
        self._arrivals: queue.SimpleQueue[tuple[Submission, list[int]]] = queue.SimpleQueue()
        #: What is wrong and was not sent.
        self._refused: list[Arrival] = []
        self._flights: dict[Submission, _Flight] = {}
        self._next_index = 0
        self._in_flight = 0
        self._read_all = False
        self._has_entered = False
        #: Records whose answers are read and still to be deleted.
        self._to_forget: list[str] = []

    def fill(self, held: int) -> None:
        """Submits until the window is full or nothing is left.

        Args:
            held: Results that the caller doesn't have yet; they count as in flight, or they would pile up without a
                bound behind a slow prompt or a slow caller.
        """
        while not self._read_all and self._in_flight + held + self._chunk_size <= self._max_in_flight:
            items = list(itertools.islice(self._requests, self._chunk_size))
            self._read_all = len(items) < self._chunk_size
            indexed = list(enumerate(items, start=self._next_index))
            self._next_index += len(items)
            self._in_flight += len(items)
            submissions = self._prepare(indexed)
            for submission in submissions:  # at once: the next prompt may be long in coming
                self._enter(submission)

    def arrivals(self) -> list[Arrival]:
        """What has arrived, at least one; empty when all that was read is answered."""
        read, self._refused = self._refused, []
        self._in_flight -= len(read)
        news = [self._arrivals.get()] if self._in_flight and not read else []
        while not self._arrivals.empty():
            news.append(self._arrivals.get())
        for submission, positions in news:
            if submission.abandoned:
                raise _client_closed()
            flight = self._flights[submission]
            record_id = submission.entry.record_id
            read += [
                Arrival(flight.indices[position], task_id(record_id, position), submission.answers[position])
                for position in positions
            ]
            self._in_flight -= len(positions)
            flight.left -= len(positions)
            if not flight.left:
                self._to_forget.append(record_id)
                del self._flights[submission]
        self._forget()
        return read

    def _enter(self, submission: Submission) -> None:
        try:
            self._session.enter(submission, insist=self._has_entered, full_queue_wait_s=math.inf)
        except (BrokerUnavailableError, QueueFullError):
            if self._session.closed:
                raise _client_closed() from None
            raise
        self._has_entered = True

    def _forget(self) -> None:
        if not self._to_forget or self._session.outage.lasts:
            return
        record_ids, self._to_forget = self._to_forget, []
        try:
            self._session.forget(record_ids)
        except BrokerUnavailableError as failure:
            log.warning("answers of %d tasks stay in the broker for their time: %s", len(record_ids), failure)

    def _prepare(self, indexed: Sequence[tuple[int, GenerationRequest | InvalidRequestError]]) -> list[Submission]:
        """One submission of what is right, more of what is large, or none; what is wrong goes to ``_refused``."""
        chunk: dict[int, GenerationRequest] = {}
        for index, request in indexed:
            if isinstance(request, InvalidRequestError):
                self._refused.append(Arrival(index, "", answer_to_wire(request)))
            else:
                chunk[index] = request
        if not chunk:
            return []
        try:
            submission = self._session.prepare(list(chunk.values()), self._model, on_answers=self._arrived)
        except InvalidRequestError as error:  # one of them is too large
            if len(chunk) == 1:
                return self._prepare([(index, error) for index in chunk])
            return self._prepare_halves(list(chunk.items()))
        if len(chunk) > 1 and len(submission.entry.requests) > MAX_CHUNK_BYTES:
            return self._prepare_halves(list(chunk.items()))
        self._flights[submission] = _Flight(list(chunk), left=len(chunk))
        return [submission]

    def _prepare_halves(self, indexed: list[tuple[int, GenerationRequest]]) -> list[Submission]:
        half = len(indexed) // 2
        return [*self._prepare(indexed[:half]), *self._prepare(indexed[half:])]

    def abandon(self) -> list[str]:
        """Waits for nothing any more; returns the records that are still in flight, which end at their deadline."""
        left = [submission.entry.record_id for submission in self._flights]
        for submission in self._flights:
            submission.abandon()  # or the reply reader might take it for forgotten, and enter it again
        self._flights.clear()
        return left

    def cancel(self) -> None:
        """Ends what is still in flight."""
        left = self.abandon()
        error = answer_to_wire(TaskCancelledError("the map that this prompt belonged to was ended"))
        try:
            for record_id in left:
                self._session.settle(record_id, error)
        except BrokerUnavailableError as failure:  # nothing to lose any more: what is left ends at its deadline
            log.warning("could not cancel %d tasks: %s", len(left), failure)
            return
        self._to_forget += left
        self._forget()

    def _arrived(self, submission: Submission, positions: list[int]) -> None:
        self._arrivals.put((submission, positions))


def run_map(mapping: Mapping, *, ordered: bool, raise_errors: bool) -> Iterator[GenerationResult]:
    """The results of a mapping; ending the iteration early cancels what is left.

    Args:
        mapping: The run.
        ordered: In the order of the prompts, or as they finish.
        raise_errors: Whether a failed prompt ends the run, or is yielded with its ``error`` set.
    """
    waiting: dict[int, Arrival] = {}
    due = 0
    try:
        mapping.fill(held=0)
        while news := mapping.arrivals():
            ready = deque(news)
            if ordered:
                waiting.update((arrival.index, arrival) for arrival in news)
                ready.clear()
                while due in waiting:
                    ready.append(waiting.pop(due))
                    due += 1
            while ready:
                # Before the caller gets a result, so that workers don't wait for the caller.
                mapping.fill(held=len(waiting) + len(ready))
                yield _result(ready.popleft(), raise_errors)
            mapping.fill(held=len(waiting))
    except (BrokerUnavailableError, ResultTimeoutError):  # nobody is there to cancel with
        mapping.abandon()
        raise
    finally:
        mapping.cancel()


def _client_closed() -> ResultTimeoutError:
    return ResultTimeoutError("the client was closed while its map went on: what is left runs, and is not read")


def _result(arrival: Arrival, raise_errors: bool) -> GenerationResult:
    answer = answer_from_wire(arrival.wire, id=arrival.task_id, index=arrival.index)
    if isinstance(answer, PromptmillError):
        if raise_errors:
            raise answer
        return GenerationResult(id=arrival.task_id, index=arrival.index, error=answer)
    return answer
