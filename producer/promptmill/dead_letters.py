"""Dead letters: prompts that were stopped because their workers kept dying under them.

The ledger's scripts write them into one stream and keep the newest thousand; here they are read, entered again, and
deleted.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from promptmill.broker import connect
from promptmill.broker_errors import broker_errors
from promptmill.entrance import queue_full
from promptmill.errors import InvalidRequestError, ResultNotFoundError
from promptmill.ledger import Entry, Ledger
from promptmill.names import Names, Priority, lane_name, model_of_queue, queue_name
from promptmill.protocol import WIRE_VERSION, GenerationRequest, requests_to_wire
from promptmill.sampling_params import describe_invalid
from promptmill.settings import ClientSettings

__all__ = ["DeadLetter", "DeadLetters", "LostDelivery"]

log = logging.getLogger(__name__)

#: How many letters are read at once; each may hold a prompt of a megabyte.
PAGE_LETTERS = 20


class LostDelivery(BaseModel):
    """One worker that was lost while it had the prompt."""

    model_config = ConfigDict(frozen=True)

    worker: str
    #: When its loss was noticed, in seconds since 1970.
    at: float
    #: Whether the worker had no other prompt by then.
    alone: bool
    why: str


class DeadLetter(BaseModel):
    """One prompt that was stopped."""

    model_config = ConfigDict(frozen=True)

    #: Its place in the stream: milliseconds since 1970, and a number.
    entry_id: str
    #: The task that it was.
    task: str
    #: Celery's queue and priority.
    queue: str
    priority: int
    #: Version of the protocol that the request is written in.
    version: int
    #: Kept from logs: it holds the prompt.
    request: Json[dict[str, Any]] = Field(repr=False)
    #: The task's deadline from its submission, in milliseconds.
    timeout_ms: int
    #: How long its answer is kept, in seconds.
    ttl: int
    #: Why it was stopped, in a sentence.
    reason: str
    history: Json[tuple[LostDelivery, ...]]

    @property
    def model(self) -> str:
        """Served name of the model that it was for."""
        return model_of_queue(self.queue)

    @property
    def stopped_at(self) -> float:
        """When it was stopped by the broker's clock, in seconds since 1970."""
        return int(self.entry_id.split("-")[0]) / 1000


class DeadLetters:
    """The dead letters behind one broker. A context manager.

    All methods raise BrokerUnavailableError if the broker does not answer.

    Args:
        settings: Names the broker.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._redis = connect(settings, socket_timeout=settings.broker_timeout_s)
        names = Names(settings.key_prefix)
        self._ledger = Ledger(self._redis, names, patience_s=settings.broker_timeout_s)
        self._stream = names.dead_letters

    def count(self) -> int:
        """How many there are."""
        return cast(int, self._ask(lambda: self._redis.xlen(self._stream)))

    def newest(self, limit: int | None = None) -> Iterator[DeadLetter]:
        """Up to ``limit`` letters, or all, newest first; left out are those that are written meanwhile.

        One that can't be read, written by another version perhaps, is left out with a warning.
        """
        return islice(self._all(), limit)

    def find(self, task_id: str) -> DeadLetter:
        """The letter of a task.

        Raises:
            ResultNotFoundError: there is none.
        """
        for letter in self._all():
            if letter.task == task_id:
                return letter
        raise ResultNotFoundError(
            f"there is no dead letter of task {task_id}: a wrong id, or it was replayed, purged, or one of the oldest",
            task_id,
        )

    def replay(self, letter: DeadLetter) -> str:
        """Enters a letter's request again, as another task, and deletes the letter.

        The task goes into its old queue, with its old priority and as much time as it was given at first. Its id comes
        from the letter: replayed once more, as this process died in between or another was at it too, it is the same
        task.

        Returns:
            The new task's id.

        Raises:
            InvalidRequestError: the request can't be read (any more); the letter stays.
            QueueFullError: the queue, or the broker's memory, is full; the letter stays.
        """
        entry = _entry_of(letter, self._settings.max_queued_prompts)
        [reply] = self._ask(lambda: self._ledger.enter([entry]))
        if reply.startswith("full"):
            raise queue_full(entry, reply)
        self.purge([letter])
        return entry.record_id

    def purge(self, letters: Sequence[DeadLetter] | None = None) -> int:
        """Deletes ``letters``, or all, also those that can't be read; returns how many."""
        if letters is None:
            return cast(int, self._ask(lambda: self._redis.xtrim(self._stream, maxlen=0, approximate=False)))
        entry_ids = [letter.entry_id for letter in letters]
        return cast(int, self._ask(lambda: self._redis.xdel(self._stream, *entry_ids))) if entry_ids else 0

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _all(self) -> Iterator[DeadLetter]:
        upper = "+"
        while page := self._page(upper):
            for entry_id, fields in page:
                letter = _letter_of(entry_id.decode(), fields)
                if letter is not None:
                    yield letter
            upper = f"({page[-1][0].decode()}"

    def _page(self, upper: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        entries = self._ask(lambda: self._redis.xrevrange(self._stream, max=upper, count=PAGE_LETTERS))
        return cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)

    def _ask(self, ask: Callable[[], Any]) -> Any:
        with broker_errors(self._settings):
            return self._ledger.patiently(ask)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _letter_of(entry_id: str, fields: dict[bytes, bytes]) -> DeadLetter | None:
    try:
        return DeadLetter.model_validate({"entry_id": entry_id, **{name.decode(): fields[name] for name in fields}})
    except ValidationError as error:
        # The field alone: its value may be the prompt.
        log.warning("dead letter %s can't be read (%s): it is left out", entry_id, error.errors()[0]["loc"][0])
        return None


def _entry_of(letter: DeadLetter, limit_prompts: int) -> Entry:
    if letter.version != WIRE_VERSION:
        raise InvalidRequestError(
            f"the dead letter of task {letter.task} is written in version {letter.version} of the protocol, this "
            f"promptmill reads version {WIRE_VERSION}: replay it with the other"
        )
    try:
        request = GenerationRequest.model_validate(letter.request)
    except ValidationError as error:
        raise InvalidRequestError(
            f"the dead letter of task {letter.task} holds no request any more "
            f"({describe_invalid(error, GenerationRequest)}): show it, and submit it anew"
        ) from None
    return Entry(
        record_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{letter.entry_id} {letter.task}").hex,
        # 0, before all else, is for foreign calls and for what is queued again.
        lane=lane_name(queue_name(letter.model), letter.priority or Priority.NORMAL),
        requests=requests_to_wire([request]),
        count=1,
        timeout_s=letter.timeout_ms / 1000,
        result_ttl_s=letter.ttl,
        limit_prompts=limit_prompts,
        streams=request.stream,
    )
