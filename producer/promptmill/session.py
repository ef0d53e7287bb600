"""What a client and its tasks share: the broker, the ledger, and the answers as they come."""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from promptmill.broker_address import BrokerAddress
from promptmill.broker_errors import broker_errors
from promptmill.entrance import TRY_S, Entrance
from promptmill.errors import BrokerUnavailableError, InvalidRequestError, QueueFullError
from promptmill.fleet import Fleet, read_fleet
from promptmill.idempotency import key_and_digest
from promptmill.ledger import Asker, Call, Entry, Snapshot, calls
from promptmill.names import Names, PriorityName, lane_name, priority_of, queue_name
from promptmill.outage import Outage
from promptmill.protocol import GenerationRequest, requests_to_wire
from promptmill.replies import ReplyReader
from promptmill.served_models import ServedModels
from promptmill.settings import ClientSettings, Settings
from promptmill.submission import Submission, Waiter
from promptmill.transport import Signal, Transport

__all__ = ["OpenTransport", "Session"]

T = TypeVar("T")

#: A read of the reply stream, which waits a second for news, that takes longer than this has met a dead connection.
READ_TIMEOUT_S = 3.0


class OpenTransport(Protocol):
    """Makes transports, of one kind."""

    def __call__(self, settings: Settings, socket_timeout: float) -> Transport:
        """A transport of its own, on which a silence of ``socket_timeout`` seconds is a failure."""


class Session:
    """The way to one broker, under clients, tasks and maps. May be used wherever its transport may.

    All methods that ask the broker raise BrokerUnavailableError if it does not answer.

    Args:
        settings: The client's.
        open_transport: Makes the transports.

    Attributes:
        settings: The client's.
        closed: Whether ``close`` was called.
        models: Which served name a request is for.
        outage: Whether the broker is away, as far as the reply reader and those who wait to enter know.
    """

    def __init__(self, settings: ClientSettings, open_transport: OpenTransport) -> None:
        self.settings = settings
        self.closed = False
        self.outage = Outage(str(BrokerAddress.parse(settings.broker_url)))
        self._names = names = Names(settings.key_prefix)
        self._transport = open_transport(settings, settings.broker_timeout_s)
        self._asker = Asker(self._transport)
        self._entrance = Entrance(self._asker, names, self.outage, settings.broker_timeout_s)
        self.models = ServedModels(settings, self._asker, names)
        # None of its arguments holds this session, or an unclosed one would wait for the garbage collector.
        self._replies = ReplyReader(
            open_transport(settings, READ_TIMEOUT_S),
            self._asker,
            names,
            self.outage,
            self.models.warn_of_unserved,
        )

    def signal(self) -> Signal:
        """A new signal of the transport's kind."""
        return self._transport.signal()

    async def pause(self, pause_s: float) -> None:
        """Waits ``pause_s`` seconds, or until the session is closed."""
        await self._asker.pause(pause_s)

    def prepare(
        self,
        requests: Sequence[GenerationRequest],
        model: str,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        on_answers: Waiter | None = None,
        idempotency_key: str | None = None,
    ) -> Submission:
        """One record of ``requests``, checked and not yet entered; with an idempotency key it is of one."""
        if priority not in ("high", "normal", "low"):
            raise InvalidRequestError(f"priority: {priority!r} is not allowed: it is 'high', 'normal' or 'low'")
        if timeout_s is not None and not (isinstance(timeout_s, int | float) and 0 < timeout_s <= 31_536_000):
            raise InvalidRequestError(f"timeout_s: {timeout_s!r} is not allowed (range: > 0 and ≤ 31536000)")
        wire = requests_to_wire(requests)
        if len(wire) > self.settings.max_request_bytes:
            self._check_sizes(requests)
        key, digest = "", ""
        if idempotency_key is not None:
            [request] = requests
            key, digest = key_and_digest(idempotency_key, queue_name(model), request)
        entry = Entry(
            record_id=uuid.uuid4().hex,
            lane=lane_name(queue_name(model), priority_of(priority)),
            requests=wire,
            count=len(requests),
            reply=self._replies.stream,
            timeout_s=self.settings.timeout_s if timeout_s is None else timeout_s,
            result_ttl_s=self.settings.result_ttl_s,
            limit_prompts=self.settings.max_queued_prompts,
            streams=any(request.stream for request in requests),
            submitter=self.settings.submitter,
            key=key,
            digest=digest,
        )
        return Submission(entry, self._transport.signal, on_answers)

    async def enter(
        self, submission: Submission, *, insist: bool = False, full_queue_wait_s: float | None = None
    ) -> str:
        """Hands a submission to the broker.

        Args:
            submission: What to enter.
            insist: Whether to wait for a broker that is away, for as long as it takes or until the client is closed.
            full_queue_wait_s: How long to wait for a queue that is full, in seconds; None is the client's setting.

        Returns:
            The id of the record that answers it: another than its own if that one holds its idempotency key. Then the
            submission is over.

        Raises:
            InvalidRequestError: another request holds its idempotency key.
            QueueFullError: the queue, or the broker's memory, is still full then.
        """
        wait_s = self.settings.full_queue_wait_s if full_queue_wait_s is None else full_queue_wait_s
        self._replies.expect(submission)
        try:
            with broker_errors(self.settings):
                record_id = await self._entrance.enter(submission.entry, insist, wait_s)
        except (BrokerUnavailableError, InvalidRequestError, QueueFullError):
            submission.abandon()  # what became of it is not known, and the caller may submit another in its place
            raise
        if record_id == submission.entry.record_id:
            submission.mark_entered()
        else:
            submission.abandon()
        return record_id

    async def look(self, record_id: str, insist: bool = False) -> Snapshot:
        """What the broker holds of a record; one that is past its deadline is ended first.

        Args:
            record_id: The record.
            insist: Whether to wait for a broker that is away, for as long as it takes or until the client is closed.
        """

        async def ask() -> Snapshot:
            [snapshot] = await self._asker.once(calls.look(self._names, [record_id]))
            if snapshot.overdue:  # workers sweep, if there are any
                await self._asker.once(calls.sweep(self._names, "client"))
                [snapshot] = await self._asker.once(calls.look(self._names, [record_id]))
            return snapshot

        return await self._ask(ask, f"look {record_id}", insist)

    async def read_stream(
        self, record_id: str, position: int, after: str, count: int, wait_s: float, insist: bool
    ) -> list[tuple[str, dict[bytes, bytes]]]:
        """Entries of a prompt's stream, each with its id.

        Args:
            record_id: The prompt's record.
            position: Its position there.
            after: The id of the entry before them.
            count: The most to return.
            wait_s: How long to wait for the first, in seconds; less if the client gives up on the broker sooner.
            insist: See ``look``.
        """
        key = self._names.stream(record_id, position)
        call = _read_call(key, after, count, int(1000 * min(wait_s, self.settings.broker_timeout_s / 2)))
        return await self._ask(lambda: self._asker.once(call), key, insist)

    async def settle(self, record_ids: Sequence[str], answer: bytes, positions: Sequence[int] = ()) -> int:
        """Answers what is left of records, see ``Ledger.settle``."""
        return await self._ask_patiently(calls.settle(self._names, record_ids, answer, positions))

    async def forget(self, record_ids: Sequence[str]) -> None:
        """Deletes answers that have been read, if that can be done now: they go by themselves, too."""
        await self._ask_patiently(calls.forget(self._names, record_ids), most_s=TRY_S)

    def find(self, record_id: str) -> Submission | None:
        """The submission of a record, if it was made here and somebody still holds it."""
        return self._replies.find(record_id)

    async def fleet(self) -> Fleet:
        """Workers, models and queues as they are now."""
        return await self._ask(lambda: read_fleet(self._transport, self._names), "fleet", insist=False)

    async def close(self) -> None:
        """Ends all waiting, and closes the connections."""
        self.closed = True
        self._asker.end()
        await self._replies.close()
        await self._transport.close()

    async def _ask_patiently(self, call: Call[T], most_s: float = math.inf) -> T:
        with broker_errors(self.settings):
            return await self._asker.ask(call, min(most_s, self.settings.broker_timeout_s))

    async def _ask(self, ask: Callable[[], Awaitable[T]], part: str, insist: bool) -> T:
        with broker_errors(self.settings):
            if not insist:
                return await self._asker.patiently(ask, self.settings.broker_timeout_s)
            try:
                return await self._asker.patiently(lambda: self.outage.watch(part, ask), math.inf)
            finally:
                self.outage.gave_up(part)

    def _check_sizes(self, requests: Sequence[GenerationRequest]) -> None:
        limit = self.settings.max_request_bytes
        for request in requests:
            size = len(request.model_dump_json(exclude_defaults=True).encode())
            if size > limit:
                raise InvalidRequestError(
                    f"the prompt is {size:,} bytes of JSON, the limit is {limit:,}: shorten it, or raise "
                    "PROMPTMILL_MAX_REQUEST_BYTES"
                )


def _read_call(key: str, after: str, count: int, block_ms: int) -> Call[list[tuple[str, dict[bytes, bytes]]]]:
    def read(replies: list[Any]) -> list[tuple[str, dict[bytes, bytes]]]:
        return [(entry_id.decode(), fields) for _, entries in replies[0] or () for entry_id, fields in entries]

    block = ("BLOCK", block_ms) if block_ms else ()
    return Call([("XREAD", "COUNT", count, *block, "STREAMS", key, after)], read, waits=block_ms > 0)
