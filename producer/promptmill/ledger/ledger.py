"""The ledger: the truth about every accepted prompt; Celery's queue only says "there is work, here".

A submitter *enters* a chunk of prompts as one record. A worker *claims* as many of its prompts as it has room for,
*renews* the claim's lease while it lives, and *finishes* prompt by prompt: the first answer to a prompt stays. Any
worker *sweeps*: it queues again what lost its lease or its pointer. Each verb is one Lua script (``lua/``), run by the
broker in one step and on its clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis

from promptmill.broker import CONNECTION_ERRORS
from promptmill.errors import TaskExpiredError
from promptmill.ledger.scripts import POINTER_TEMPLATE, script
from promptmill.names import Names
from promptmill.protocol import WIRE_VERSION, answer_to_wire

__all__ = [
    "DEFAULT_LIMIT_PROMPTS",
    "DEFAULT_MAX_DELIVERIES",
    "MEMORY_PERCENT",
    "TRANSIENT_ERRORS",
    "Claim",
    "Entry",
    "Ledger",
    "Snapshot",
]

T = TypeVar("T")

#: Errors that a broker answers while it loads, fails over, or is short of disk or memory: the same call may succeed
#: later.
TRANSIENT_ERRORS = (*CONNECTION_ERRORS, redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError)

#: The same, where redis-py has no class for them, or Redis 6.2 wraps them as "Error running script".
TRANSIENT_CODES = ("BUSY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY")

#: How many records one sweep moves at most; the next goes on.
SWEEP_LIMIT = 1000

#: The most prompts that one model's queue and workers hold, unless an entry says otherwise.
DEFAULT_LIMIT_PROMPTS = 1_000_000

#: How many workers may be lost with a prompt before it is given up, at the earliest.
DEFAULT_MAX_DELIVERIES = 3

#: Above this share of the broker's memory nothing is entered: the rest is for answers.
MEMORY_PERCENT = 75

_EXPIRED = answer_to_wire(TaskExpiredError("the task's deadline passed before it was answered: give it more timeout_s"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What ``enter`` writes: one record."""

    record_id: str
    #: Queue and priority, see ``names.lane_name``.
    lane: str
    #: The chunk as ``protocol.requests_to_wire`` writes it.
    requests: bytes
    count: int
    #: Key of the submitter's reply stream, or "".
    reply: str = ""
    timeout_s: float = 86_400.0
    result_ttl_s: int = 86_400
    #: How many prompts the model's queue and its workers may hold with this one. (Plain calls are always let in.)
    limit_prompts: int = DEFAULT_LIMIT_PROMPTS
    #: A plain Celery call: the message to publish if it has to be queued again, without its delivery tag.
    message_halves: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a granted ``claim`` hands over."""

    record_id: str
    token: str
    version: int
    #: The requests at ``positions``, as ``protocol.requests_to_wire`` writes them.
    requests: bytes
    positions: tuple[int, ...]
    #: For each position: 1, and one more for each worker that was lost while it had the prompt.
    attempts: tuple[int, ...]
    #: From entering to this claim, in seconds.
    queued_s: float
    #: From this claim to the record's deadline, in seconds.
    time_left_s: float
    #: A plain Celery call's answer, if it has one already.
    answer: bytes | None
    #: Whether its one prompt has to run alone in its worker, since other workers died under it; see ``Ledger.start``.
    alone: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the broker holds of one record."""

    answers: dict[int, bytes]
    #: Positions that wait in the queue; None if there is no record (any more).
    open: frozenset[int] | None
    #: Whether the record is past its deadline, and waits for somebody to end it.
    overdue: bool = False


class Ledger:
    """The verbs. Thread-safe: redis-py's client is.

    Args:
        client: A redis-py client (not one that decodes responses).
        names: The keys.
        patience_s: How long a call is tried again while the broker is away, in seconds; after that redis-py's own
            error is raised. All verbs may be repeated without harm.
    """

    def __init__(self, client: redis.Redis, names: Names, patience_s: float = 0.0) -> None:
        self.client = client
        self.names = names
        self.patience_s = patience_s
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends all patience: calls that wait for the broker raise now."""
        self._closed.set()

    def enter(self, entries: Sequence[Entry]) -> list[str]:
        """Accepts records, in one round trip.

        Returns:
            For each: "entered"; "known" if it is there already; "answered" if all its answers are; "full" if the
            broker's memory is, "full N" if the model's queue and workers hold N prompts and this is too much.
        """
        calls = [
            (
                entry.record_id,
                WIRE_VERSION,
                entry.lane,
                entry.count,
                entry.requests,
                entry.reply,
                int(entry.timeout_s * 1000),
                entry.result_ttl_s,
                entry.limit_prompts,
                MEMORY_PERCENT,
                int(entry.message_halves is not None),
                *(entry.message_halves or ("", "")),
            )
            for entry in entries
        ]
        return [cast(bytes, reply).decode() for reply in self._run_many("enter", calls)]

    def claim(
        self,
        record_id: str,
        token: str,
        room: int,
        lease_s: float,
        lane: str = "",
        score: str = "0",
        max_deliveries: int = DEFAULT_MAX_DELIVERIES,
    ) -> Claim | str:
        """Takes up to ``room`` prompts of a record.

        Args:
            record_id: The record.
            token: Names this claim, ``{record_id}/{number}.{run}@{worker}``: unique, and the part after the first dot
                tells the worker process.
            room: The most prompts to take.
            lease_s: How long the claim lasts without ``renew``, in seconds.
            lane: The lane of the pointer that led here.
            score: That pointer's score.
            max_deliveries: A prompt that was lost with one worker less than this runs alone.

        Returns:
            The claim; or "gone" if there is no such record or its deadline has passed, or "leased" if others hold all
            that is left.
        """
        reply = self._run("claim", record_id, token, room, int(lease_s * 1000), lane, score, max_deliveries)
        status = reply[0].decode()
        if status != "granted":
            return cast(str, status)
        _, version, requests, positions, attempts, queued_us, left_us, answer, alone = reply
        return Claim(
            record_id,
            token,
            int(version),
            requests,
            tuple(map(int, positions.split())),
            tuple(map(int, attempts.split())),
            int(queued_us) / 1e6,
            int(left_us) / 1e6,
            answer or None,
            alone == 1,
        )

    def start(self, record_id: str, token: str) -> bool:
        """The prompt of an ``alone`` claim goes into the engine: from now on its worker's death counts.

        Returns:
            Whether the claim still holds.
        """
        return bool(self._run("start", record_id, token))

    def lose(self, record_id: str, token: str, why: str) -> None:
        """Gives up a claim whose prompts may have brought the engine down: that counts as a lost delivery of each."""
        self._run("lose", record_id, token, why)

    def renew(self, tokens: Sequence[str], lease_s: float) -> list[str]:
        """Extends the leases of ``tokens``; returns those that are lost."""
        return [token.decode() for token in self._run("renew", int(lease_s * 1000), *tokens)]

    def finish(
        self, record_id: str, token: str, answers: Sequence[tuple[int, bool, bytes]], last: bool
    ) -> tuple[int, ...]:
        """Stores answers, first write wins, and tells the submitter.

        Args:
            record_id: The record.
            token: The claim they come from.
            answers: (position, is an error, JSON) of each.
            last: Whether all prompts of the claim have been sent now.

        Returns:
            With ``last``: the positions of this claim that the broker still misses, to be sent again.
        """
        flat: list[Any] = []
        for position, is_error, wire in answers:
            flat += (position, "error" if is_error else "answer", wire)
        _, missing = self._run("finish", record_id, token, int(last), *flat)
        return tuple(map(int, missing.split()))

    def put_back(self, record_id: str, token: str) -> int:
        """Gives up a claim: what it has not answered is queued again, at the front. Returns how many prompts."""
        return cast(int, self._run("put_back", record_id, token))

    def settle(self, record_id: str, answer: bytes, positions: Sequence[int] = ()) -> int:
        """Answers what is left of ``positions`` (of all, if none are given) with ``answer``; returns how many.

        Workers that hold them are told on the channel ``Names.settled``: "{record_id} {positions}".
        """
        return cast(int, self._run("settle", record_id, answer, " ".join(map(str, positions))))

    def drop(self, record_id: str) -> None:
        """Ends the record of a plain Celery call whose result Celery has stored."""
        self._run("drop", record_id)

    def sweep(self, sweeper: str, interval_s: float = 1.0, grace_s: float = 3.0) -> list[str]:
        """Queues again what was lost, and ends what is past its deadline, unless another sweeper is at it.

        Args:
            sweeper: Names the sweeper.
            interval_s: For how long no other sweeps, in seconds.
            grace_s: How long a popped pointer may take to be claimed, in seconds.

        Returns:
            One line for each record moved: "lease ID", "pointer ID" or "deadline ID".
        """
        arguments = (sweeper, int(interval_s * 1000), int(grace_s * 1000), SWEEP_LIMIT, _EXPIRED)
        return [line.decode() for line in self._run("sweep", *arguments)]

    def look(self, record_ids: Sequence[str]) -> list[Snapshot]:
        """What the broker holds of each record, in one round trip."""

        def ask() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for record_id in record_ids:
                    # The record first: read after the answers, it could end in between, and look lost.
                    pipe.hmget(self.names.record(record_id), "open", "deadline")
                    pipe.hgetall(self.names.answers(record_id))
                pipe.time()
                return pipe.execute()

        *replies, (seconds, microseconds) = self.patiently(ask)
        now = seconds * 1_000_000 + microseconds
        return [
            Snapshot(
                {int(position): wire for position, wire in answers.items()},
                frozenset(map(int, waiting.split())) if waiting is not None else None,
                deadline is not None and int(deadline) <= now,
            )
            for (waiting, deadline), answers in zip(replies[::2], replies[1::2], strict=True)
        ]

    def forget(self, record_ids: Sequence[str]) -> None:
        """Deletes answers that have been read and won't be asked for again."""
        keys = [self.names.answers(record_id) for record_id in record_ids]
        self.patiently(lambda: self.client.unlink(*keys))

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._run_many(name, [arguments])[0]

    def _run_many(self, name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Runs one script once for each of ``calls``, pipelined.

        EVALSHA goes into the pipeline as it is: redis-py's Script objects would add a round trip.
        """
        code = script(name)

        def ask() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for arguments in calls:
                    pipe.evalsha(code.sha1, 0, self.names.prefix, POINTER_TEMPLATE, *arguments)
                return pipe.execute()

        def ask_and_load() -> list[Any]:
            try:
                return ask()
            except redis.exceptions.NoScriptError:  # a broker that is new, was restarted, or took over
                self.client.script_load(code.source)
                return ask()

        return self.patiently(ask_and_load)

    def patiently(self, ask: Callable[[], T]) -> T:
        """``ask()``, and again while the broker is away and patience lasts."""
        give_up_at = time.monotonic() + self.patience_s
        pause_s = 0.05
        while True:
            try:
                return ask()
            except redis.exceptions.RedisError as error:
                if not _may_pass(error) or time.monotonic() + pause_s > give_up_at:
                    raise
                if self._closed.wait(pause_s):
                    raise
            pause_s = min(pause_s * 2, 1.0)


def _may_pass(error: redis.exceptions.RedisError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, TRANSIENT_ERRORS) or any(f"{code} " in str(error) for code in TRANSIENT_CODES)
