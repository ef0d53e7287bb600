"""Running many prompts with few of them in flight."""

from __future__ import annotations

import itertools
import logging
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptmill.errors import BrokerUnavailableError, PromptmillError, TaskCancelledError
from promptmill.protocol import GenerationRequest, GenerationResult, answer_from_wire, answer_to_wire
from promptmill.submission import Submission
from promptmill.task import task_id

if TYPE_CHECKING:
    from promptmill.client import Client

__all__ = ["Mapping", "run_map"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One answer, and the place of its prompt."""

    index: int
    task_id: str
    wire: bytes


@dataclass(slots=True)
class _Flight:
    """A submission that is not read to its end."""

    first_index: int
    #: Prompts whose answers were not read yet.
    left: int


class Mapping:
    """One run of ``Client.map``: a window over an iterable. Belongs to the thread that iterates.

    Args:
        client: Submits the chunks.
        requests: What to run; read no further than the window reaches.
        model: Served name.
        max_in_flight: Size of the window, in prompts.
        chunk_size: Prompts in one record.
    """

    def __init__(
        self, client: Client, requests: Iterator[GenerationRequest], model: str, max_in_flight: int, chunk_size: int
    ) -> None:
        self._client = client
        self._requests = requests
        self._model = model
        self._max_in_flight = max_in_flight
        self._chunk_size = min(chunk_size, max_in_flight)
        #: Filled by the reply reader's thread.
        self._arrivals: queue.SimpleQueue[tuple[Submission, list[int]]] = queue.SimpleQueue()
        self._flights: dict[Submission, _Flight] = {}
        self._next_index = 0
        self._in_flight = 0
        self._read_all = False

    def fill(self, held: int = 0) -> None:
        """Submits until the window is full or nothing is left; all that fits in one round trip.

        Args:
            held: Results that wait for an earlier one; they count as in flight, or a slow prompt would let the others
                pile up without a bound.
        """
        submissions = []
        while not self._read_all and self._in_flight + held + self._chunk_size <= self._max_in_flight:
            chunk = list(itertools.islice(self._requests, self._chunk_size))
            self._read_all = len(chunk) < self._chunk_size
            if chunk:
                submission = self._client.prepare(chunk, self._model, on_answers=self._arrived)
                self._flights[submission] = _Flight(self._next_index, len(chunk))
                self._next_index += len(chunk)
                self._in_flight += len(chunk)
                submissions.append(submission)
        if submissions:
            self._client.enter(submissions)

    def arrivals(self) -> list[Arrival]:
        """What has arrived, at least one; empty when all is answered."""
        if not self._in_flight:
            return []
        news = [self._arrivals.get()]
        while not self._arrivals.empty():
            news.append(self._arrivals.get())
        read: list[Arrival] = []
        completed = []
        for submission, positions in news:
            flight = self._flights[submission]
            record_id = submission.entry.record_id
            read += [
                Arrival(flight.first_index + position, task_id(record_id, position), submission.answers[position])
                for position in positions
            ]
            self._in_flight -= len(positions)
            flight.left -= len(positions)
            if not flight.left:
                completed.append(record_id)
                del self._flights[submission]
        if completed:
            self._client.forget(completed)
        return read

    def cancel(self) -> None:
        """Ends what is still in flight."""
        left = [submission.entry.record_id for submission in self._flights]
        self._flights.clear()
        error = answer_to_wire(TaskCancelledError("the map that this prompt belonged to was ended"))
        try:
            for record_id in left:
                self._client.settle(record_id, error)
            if left:
                self._client.forget(left)
        except BrokerUnavailableError as failure:  # nothing to lose any more: what is left ends at its deadline
            log.warning("could not cancel %d tasks: %s", len(left), failure)

    def _arrived(self, submission: Submission, positions: list[int]) -> None:
        self._arrivals.put((submission, positions))


def run_map(mapping: Mapping, *, ordered: bool, raise_errors: bool) -> Iterator[GenerationResult]:
    """The results of a mapping; ending the iteration early cancels what is left.

    Args:
        mapping: The run.
        ordered: In the order of the prompts, or as they finish.
        raise_errors: Whether a failed prompt ends the run, or is yielded with its ``error`` set.
    """
    waiting: dict[int, GenerationResult] = {}
    due = 0
    try:
        mapping.fill()
        while news := mapping.arrivals():
            # The window is filled before the caller gets its results, so that workers don't wait for the caller.
            mapping.fill(held=len(waiting) + len(news) if ordered else 0)
            results = (_result(arrival, raise_errors) for arrival in news)
            if not ordered:
                yield from results
                continue
            waiting.update((result.index, result) for result in results)
            while due in waiting:
                yield waiting.pop(due)
                due += 1
    finally:
        mapping.cancel()


def _result(arrival: Arrival, raise_errors: bool) -> GenerationResult:
    answer = answer_from_wire(arrival.wire, id=arrival.task_id, index=arrival.index)
    if isinstance(answer, PromptmillError):
        if raise_errors:
            raise answer
        return GenerationResult(id=arrival.task_id, index=arrival.index, error=answer)
    return answer
