"""Handles on one submitted prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from enum import StrEnum

from promptmill.blocking import iterate, run
from promptmill.delta import Delta
from promptmill.errors import (
    PromptmillError,
    ResultNotFoundError,
    ResultTimeoutError,
    TaskCancelledError,
    TaskExpiredError,
)
from promptmill.protocol import GenerationResult, answer_from_wire, answer_to_wire
from promptmill.session import Session
from promptmill.submission import Submission
from promptmill.text_stream import TextStream

__all__ = ["AsyncTask", "Task", "TaskStatus", "parse_task_id", "task_id"]


class TaskStatus(StrEnum):
    """Where a task is."""

    #: Waits for a worker.
    QUEUED = "queued"
    #: A worker has it.
    RUNNING = "running"
    #: Its result is there.
    SUCCEEDED = "succeeded"
    #: It ended in a TaskFailedError or an InvalidRequestError.
    FAILED = "failed"
    #: Somebody cancelled it.
    CANCELLED = "cancelled"
    #: Its deadline passed first.
    EXPIRED = "expired"
    #: The broker knows neither the task nor its result.
    UNKNOWN = "unknown"


def task_id(record_id: str, position: int) -> str:
    """The id of one prompt of a record."""
    return f"{record_id}:{position}" if position else record_id


def parse_task_id(given: str) -> tuple[str, int]:
    """The (record id, position) that ``task_id`` made an id of."""
    record_id, colon, position = given.rpartition(":")
    return (record_id, int(position)) if colon and position.isdecimal() else (given, 0)


class AsyncTask:
    """One submitted prompt; in this process or, by its id, in any other.

    Made by ``AsyncClient.submit`` and ``AsyncClient.task``.

    Attributes:
        id: Names the task everywhere: in ``client.task(id)``, on the command line, in Flower.
    """

    def __init__(
        self, session: Session, record_id: str, position: int = 0, submission: Submission | None = None
    ) -> None:
        self._session = session
        self._record_id = record_id
        self._position = position
        self._submission = submission

    @property
    def id(self) -> str:
        """The record's id, with ``:position`` for a prompt of a chunk that isn't its first."""
        return task_id(self._record_id, self._position)

    async def status(self) -> TaskStatus:
        """See ``Task.status``."""
        snapshot = await self._session.look(self._record_id)
        wire = snapshot.answers.get(self._position)
        if wire is not None:
            return _status_of(answer_from_wire(wire))
        if snapshot.open is None:
            return TaskStatus.UNKNOWN
        return TaskStatus.QUEUED if self._position in snapshot.open else TaskStatus.RUNNING

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """See ``Task.result``. Giving up the wait, as by ``asyncio.timeout``, does not end the task."""
        answer = await self._answer(timeout_s)
        if answer is None:
            raise ResultTimeoutError(
                f"task {self.id} has no result after {timeout_s:g} s; it goes on, ask again later", self.id
            )
        if isinstance(answer, PromptmillError):
            raise answer
        return answer

    def stream(self, from_start: bool = True) -> AsyncGenerator[Delta, None]:
        """See ``Task.stream``."""
        is_streamed = self._submission is None or self._submission.entry.streams
        stream = TextStream(self._session, self._record_id, self._position, is_streamed, self._answer)
        return stream.deltas(from_start)

    async def cancel(self) -> bool:
        """See ``Task.cancel``."""
        error = answer_to_wire(TaskCancelledError(f"task {self.id} was cancelled"))
        return await self._session.settle([self._record_id], error, [self._position]) > 0

    async def _answer(self, timeout_s: float | None, insist: bool = False) -> GenerationResult | PromptmillError | None:
        try:
            wire = await self._wait(timeout_s, insist)
        except Exception:  # of whatever kind, if another thread closes the connection that is asked over
            if not self._session.closed:
                raise
            wire = None
        if wire is not None:
            return answer_from_wire(wire, id=self.id)
        if self._session.closed or (self._submission is not None and self._submission.abandoned):
            raise ResultTimeoutError(
                f"the client was closed before task {self.id} was answered; it goes on, another client can ask for "
                "it by its id",
                self.id,
            )
        return None

    async def _wait(self, timeout_s: float | None, insist: bool) -> bytes | None:
        # In a forked child the answers go to the parent, and the broker has to be asked.
        if self._submission is not None and self._session.find(self._record_id) is not None:
            return await self._submission.wait(self._position, timeout_s)
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.02
        while True:
            snapshot = await self._session.look(self._record_id, insist)
            wire = snapshot.answers.get(self._position)
            if wire is not None:
                return wire
            if snapshot.open is None:
                raise ResultNotFoundError(
                    f"the broker knows no task {self.id}: a wrong id, or its result was kept long enough and is gone",
                    self.id,
                )
            if give_up_at is not None:
                pause_s = min(pause_s, give_up_at - time.monotonic())
                if pause_s <= 0:
                    return None
            await self._session.pause(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def __repr__(self) -> str:
        return f"AsyncTask({self.id!r})"


class Task:
    """One submitted prompt; in this process or, by its id, in any other. Made by ``Client.submit`` and ``Client.task``.

    Attributes:
        id: Names the task everywhere: in ``client.task(id)``, on the command line, in Flower.
    """

    def __init__(self, core: AsyncTask) -> None:
        self._core = core

    @property
    def id(self) -> str:
        """The record's id, with ``:position`` for a prompt of a chunk that isn't its first."""
        return self._core.id

    def status(self) -> TaskStatus:
        """Where the task is now.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        return run(self._core.status())

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Waits for the result.

        Args:
            timeout_s: How long to wait, in seconds; None waits until the task's own deadline ends it.

        Raises:
            TaskFailedError: it ended in a failure; also its subclasses.
            InvalidRequestError: the worker can't do what was asked for.
            TaskCancelledError: it was cancelled.
            TaskExpiredError: its deadline passed.
            ResultTimeoutError: it isn't there yet; the task goes on.
            ResultNotFoundError: the broker knows neither the task nor its result.
            BrokerUnavailableError: the broker does not answer.
        """
        return run(self._core.result(timeout_s))

    def stream(self, from_start: bool = True) -> Generator[Delta, None, None]:
        """The texts as they are made: of a task submitted with ``stream=True``, in this or any other process.

        Of another task, and of one that was answered more than ten minutes ago, the whole text comes in one piece. An
        outage of the broker is waited for once it has answered. Leaving the iteration ends no task.

        Args:
            from_start: Whether to begin with the first piece, or with what comes after the iteration has begun.

        Yields:
            Pieces that join to the text (with ``n`` > 1: those of each ``choice`` to its text), where one
            with ``restarted`` set voids all before it.

        Raises:
            PromptmillError: as ``result``, after what was generated before; but no ResultTimeoutError while the client
                is open.
        """
        return iterate(self._core.stream(from_start))

    def cancel(self) -> bool:
        """Ends the task with TaskCancelledError, unless it is answered already; returns whether it was ended.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        return run(self._core.cancel())

    def __repr__(self) -> str:
        return f"Task({self.id!r})"


def _status_of(answer: GenerationResult | PromptmillError) -> TaskStatus:
    match answer:
        case GenerationResult():
            return TaskStatus.SUCCEEDED
        case TaskCancelledError():
            return TaskStatus.CANCELLED
        case TaskExpiredError():
            return TaskStatus.EXPIRED
        case _:
            return TaskStatus.FAILED
