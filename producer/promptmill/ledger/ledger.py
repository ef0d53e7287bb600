"""The ledger: the truth about every accepted prompt; Celery's queue only says "there is work, here".

A submitter *enters* a chunk of prompts as one record. A worker *claims* as many of its prompts as it has room for,
*renews* the claim's lease while it lives, and *finishes* prompt by prompt: the first answer to a prompt stays. Any
worker *sweeps*: it queues again what lost its lease or its pointer. Each verb is one Lua script (``lua/``), run by the
broker in one step and on its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import redis

from promptmill.blocking import BlockingTransport, run
from promptmill.ledger import calls
from promptmill.ledger.asker import Asker
from promptmill.ledger.call import Call, run_script
from promptmill.ledger.records import Claim, Entry, Piece, Snapshot
from promptmill.names import Names

__all__ = ["Ledger"]

T = TypeVar("T")

#: How many pieces of texts one run of the script takes at most: the broker does nothing else meanwhile.
PIECES_A_CALL = 256


class Ledger:
    """The verbs, for threads: each waits for the broker. Thread-safe: redis-py's client is.

    Args:
        client: A redis-py client (not one that decodes responses).
        names: The keys.
        patience_s: How long a call is tried again while the broker is away, in seconds; after that redis-py's own
            error is raised. All verbs may be repeated without harm.
    """

    def __init__(self, client: redis.Redis, names: Names, patience_s: float = 0.0) -> None:
        self.client = client
        self.names = names
        self._asker = Asker(BlockingTransport(client))
        self._patience_s = patience_s

    def close(self) -> None:
        """Ends all patience: calls that wait for the broker raise now."""
        self._asker.end()

    def enter(self, entries: Sequence[Entry]) -> list[str]:
        """Accepts records, in one round trip.

        Returns:
            For each: "entered"; "known" if it is there already; "answered" if all its answers are; "full" if the
            broker's memory is, "full N" if the model's queue and workers hold N prompts and this is too much. With an
            idempotency key also "same ID" if that record holds it, with the same digest, and waits, runs or succeeded;
            "conflict" if the digest is another.
        """
        return self._ask(calls.enter(self.names, entries))

    def claim(
        self,
        record_id: str,
        token: str,
        room: int,
        lease_s: float,
        max_deliveries: int,
        lane: str = "",
        score: str = "0",
    ) -> Claim | str:
        """Takes up to ``room`` prompts of a record: of this one or, if it is another's turn in its lane, of that.

        Args:
            record_id: The record that a pointer names.
            token: Names this claim, ``{record_id}/{number}.{run}@{worker}``: unique, and the part after the first dot
                tells the worker process.
            room: The most prompts to take.
            lease_s: How long the claim lasts without ``renew``, in seconds.
            max_deliveries: A prompt that was lost with one worker less than this runs alone.
            lane: The lane of the pointer that led here.
            score: That pointer's score.

        Returns:
            The claim; or "gone" if there is no such record, its deadline has passed, or nobody waits for this pointer
            (any more), "leased" if others hold all that is left, or "paused" if its queue is.
        """
        reply = self._run("claim", record_id, token, room, int(lease_s * 1000), lane, score, max_deliveries)
        status = reply[0].decode()
        if status != "granted":
            return cast(str, status)
        _, version, requests, positions, attempts, queued_us, left_us, answer, alone, granted, priority, turn = reply
        return Claim(
            granted.decode(),
            f"{granted.decode()}/{token.rpartition('/')[2]}",
            int(version),
            requests,
            tuple(map(int, positions.split())),
            tuple(map(int, attempts.split())),
            int(queued_us) / 1e6,
            int(left_us) / 1e6,
            answer or None,
            alone == 1,
            int(priority),
            float(turn),
        )

    def start(self, record_id: str, token: str) -> bool:
        """The prompt of an ``alone`` claim goes into the engine: from now on its worker's death counts.

        Returns:
            Whether the claim still holds.
        """
        return bool(self._run("start", record_id, token))

    def lose(self, record_id: str, token: str, why: str, innocent: Sequence[int] = ()) -> None:
        """Gives up a claim whose prompts may have brought the engine down: that counts as a lost delivery of each.

        Those at the positions ``innocent`` were not in it yet: they only go back into the queue.
        """
        self._run("lose", record_id, token, why, " ".join(map(str, innocent)))

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
        missing = self._run("finish", record_id, token, int(last), *flat)
        return tuple(map(int, missing.split()))

    def emit(self, pieces: Sequence[Piece]) -> int:
        """Tells readers what the texts of running prompts have come to, in one round trip.

        Returns:
            How many pieces were taken: of claims that still hold, of records that are streamed.
        """
        flat = [(p.record_id, p.token, p.position, p.choice, p.offset, int(p.repeats), p.text) for p in pieces]
        runs = [
            list(chain.from_iterable(flat[start : start + PIECES_A_CALL]))
            for start in range(0, len(flat), PIECES_A_CALL)
        ]
        return self._ask(run_script(self.names, "emit", runs, sum))

    def put_back(self, record_id: str, token: str) -> int:
        """Gives up a claim: what it has not answered is queued again, at the front. Returns how many prompts."""
        return cast(int, self._run("put_back", record_id, token))

    def settle(self, record_id: str, answer: bytes, positions: Sequence[int] = ()) -> int:
        """Answers what is left of ``positions`` (of all, if none are given) with ``answer``; returns how many.

        Workers that hold them are told on the channel ``Names.settled``: "{positions, by commas} {record_id}".
        """
        return self._ask(calls.settle(self.names, [record_id], answer, positions))

    def is_paused(self, queue: str) -> bool:
        """Whether nothing is to be taken from a model's queue."""
        return bool(self.patiently(lambda: self.client.hexists(self.names.paused, queue)))

    def last_time(self) -> int:
        """The last time that was given out, in the broker's microseconds: all records were entered by then."""
        return int(cast(Any, self.patiently(lambda: self.client.get(self.names.clock))) or 0)

    def purge(self, lane: str, answer: bytes, entered_by: int, skip: int = 0) -> tuple[int, int, bool]:
        """Answers a part of what is queued in a lane with ``answer``; only counts it if that is empty.

        Args:
            lane: The lane.
            answer: The answer of all.
            entered_by: What was entered later is left alone, see ``last_time``.
            skip: How many records the calls before this one have left where they are.

        Returns:
            How many prompts it were, how many records to skip in the next call, and whether that one is needed.
        """
        prompts, skip, goes_on = self._run("purge", lane, skip, entered_by, answer)
        return prompts, skip, bool(goes_on)

    def clear(self, lane: str, messages: int) -> tuple[int, int]:
        """Takes those out of a lane's next ``messages`` messages, or a part of them, that lead to no record.

        Returns:
            How many plain calls that no worker had taken are gone, and how many messages were looked at.
        """
        calls, looked = self._run("clear", lane, messages)
        return calls, looked

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
            One line for each record that was lost or ended: "lease ID", "pointer ID" or "deadline ID".
        """
        return self._ask(calls.sweep(self.names, sweeper, interval_s, grace_s))

    def look(self, record_ids: Sequence[str]) -> list[Snapshot]:
        """What the broker holds of each record, in one round trip."""
        return self._ask(calls.look(self.names, record_ids))

    def forget(self, record_ids: Sequence[str]) -> None:
        """Deletes answers that have been read and won't be asked for again."""
        self._ask(calls.forget(self.names, record_ids))

    def patiently(self, ask: Callable[[], T]) -> T:
        """``ask()``, and again while the broker is away and patience lasts."""

        async def asked() -> T:
            return ask()

        return run(self._asker.patiently(asked, self._patience_s))

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._ask(run_script(self.names, name, [arguments], lambda replies: replies[0]))

    def _ask(self, call: Call[T]) -> T:
        return run(self._asker.ask(call, self._patience_s))
