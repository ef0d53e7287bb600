"""The prompts of a ``map`` that are in flight."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.chunk_size import ChunkSizer
from promptmill.errors import (
    BrokerUnavailableError,
    InvalidRequestError,
    QueueFullError,
    ResultTimeoutError,
    TaskCancelledError,
)
from promptmill.map_options import Item, MapOptions
from promptmill.protocol import GenerationRequest, answer_to_wire
from promptmill.session import Session
from promptmill.source import Source
from promptmill.submission import Submission
from promptmill.task import task_id

__all__ = ["Arrival", "MapWindow"]

log = logging.getLogger(__name__)

#: A chunk that is larger is cut: it has to be sent within a timeout, and each claim of a part has the broker read it.
MAX_CHUNK_BYTES = 1_048_576

#: How long answers are waited for while the source lags, in seconds: an event loop that the source holds up needs that
#: to read them.
MOMENT_S = 0.01

#: How many records are cancelled in one round trip.
CANCELLED_AT_ONCE = 256


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


class MapWindow:
    """One run of ``map``: a window over an iterable. Belongs to the one who iterates.

    The first chunk finds out whether the broker answers. Once that one is entered there is something to lose: a broker
    that goes away is waited for.

    Args:
        session: Submits the chunks.
        source: What to run; read no further than the window reaches.
        options: The user's.
    """

    def __init__(self, session: Session, source: Source[Any, Item], options: MapOptions) -> None:
        self._session = session
        self._source = source
        self._model = ""
        self._options = options
        self._sizer = ChunkSizer(options.max_in_flight, options.chunk_size, source.total)
        #: Filled by the reply reader, who sets the signal.
        self._arrivals: deque[tuple[Submission, list[int]]] = deque()
        self._news = session.signal()
        #: What is wrong and was not sent.
        self._refused: list[Arrival] = []
        self._flights: dict[Submission, _Flight] = {}
        self._next_index = 0
        self._in_flight = 0
        #: Whether the source was waited for, and has room in the window: what has arrived must not wait with it.
        self.lags = False
        self._has_entered = False
        #: As far as the last chunk has found out that was to be entered.
        self._broker_is_away = False
        #: Records whose answers are read and still to be deleted.
        self._to_forget: list[str] = []

    async def begin(self) -> None:
        """Finds out which model it is for.

        Raises:
            PromptmillError: as ``ServedModels.resolve``.
        """
        self._model = await self._session.models.resolve(self._options.model, self._options.require_worker)

    @property
    def goes_on(self) -> bool:
        """Whether anything is still to be read or answered."""
        return not self._source.ended or self._in_flight > 0

    @property
    def is_cut_off(self) -> bool:
        """Whether nobody is there to cancel with: the client was closed, or the broker is away."""
        return self._session.closed or self._broker_is_away

    async def fill(self, held: int) -> None:
        """Submits until the window is full, the source lags, or nothing is left.

        Args:
            held: Results that the caller doesn't have yet; they count as in flight, or they would pile up without a
                bound behind a slow prompt or a slow caller.
        """
        self.lags = False
        while not (self._source.ended or self.lags):
            batches = await self._session.models.batches(self._model)
            size = self._sizer.next(batches)
            if self._in_flight + held + size > self._sizer.window(batches):
                return
            items = await self._source.take(size)
            self.lags = self._source.lags
            indexed = list(enumerate(items, start=self._next_index))
            self._next_index += len(items)
            self._in_flight += len(items)
            for submission in self._prepare(indexed):  # at once: the next prompt may be long in coming
                self._sizer.note(submission.entry.count, len(submission.entry.requests))
                await self._enter(submission)

    async def arrivals(self) -> list[Arrival]:
        """What has arrived: at least one, unless the source lags, or all that was read is answered."""
        read, self._refused = self._refused, []
        self._in_flight -= len(read)
        if self._in_flight and not read:
            await self._wait()
        while self._arrivals:
            read += self._land(*self._arrivals.popleft())
        await self._forget()
        return read

    async def _wait(self) -> None:
        while not self._arrivals:
            self._news.clear()
            if not self._arrivals:  # or it came in between
                await self._news.wait(MOMENT_S if self.lags else None)
            if self.lags:
                return

    def _land(self, submission: Submission, positions: list[int]) -> list[Arrival]:
        if submission.abandoned:
            raise _client_closed()
        flight = self._flights[submission]
        record_id = submission.entry.record_id
        self._in_flight -= len(positions)
        flight.left -= len(positions)
        if not flight.left:
            self._to_forget.append(record_id)
            del self._flights[submission]
        return [
            Arrival(flight.indices[position], task_id(record_id, position), submission.answers[position])
            for position in positions
        ]

    async def _enter(self, submission: Submission) -> None:
        try:
            await self._session.enter(submission, insist=self._has_entered, full_queue_wait_s=math.inf)
        except (BrokerUnavailableError, QueueFullError) as error:
            if self._session.closed:
                raise _client_closed() from None
            self._broker_is_away = isinstance(error, BrokerUnavailableError)
            raise
        except RuntimeError:
            if self._session.closed and self._has_entered:  # closed in between
                raise _client_closed() from None
            raise
        self._has_entered = True

    async def _forget(self) -> None:
        if not self._to_forget or self._session.outage.lasts:
            return
        record_ids, self._to_forget = self._to_forget, []
        try:
            await self._session.forget(record_ids)
        except BrokerUnavailableError as failure:
            log.warning("answers of %d tasks stay in the broker for their time: %s", len(record_ids), failure)

    def _prepare(self, indexed: Sequence[tuple[int, Item]]) -> list[Submission]:
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
            submission = self._session.prepare(
                list(chunk.values()), self._model, self._options.priority, self._options.timeout_s, self._arrived
            )
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

    async def cancel(self) -> None:
        """Ends what is still in flight."""
        left = self.abandon()
        error = answer_to_wire(TaskCancelledError("the map that this prompt belonged to was ended"))
        try:
            for start in range(0, len(left), CANCELLED_AT_ONCE):
                await self._session.settle(left[start : start + CANCELLED_AT_ONCE], error)
        except BrokerUnavailableError as failure:  # nothing to lose any more: what is left ends at its deadline
            log.warning("could not cancel %d tasks: %s", len(left), failure)
            return
        self._to_forget += left
        await self._forget()

    def _arrived(self, submission: Submission, positions: list[int]) -> None:
        self._arrivals.append((submission, positions))
        self._news.set()


def _client_closed() -> ResultTimeoutError:
    return ResultTimeoutError("the client was closed while its map went on: what is left runs, and is not read")
