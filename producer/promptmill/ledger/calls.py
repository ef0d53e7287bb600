"""The ledger's verbs that clients use, as calls: a thread and an event loop send the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptmill.errors import TaskExpiredError
from promptmill.ledger.call import Call, run_script
from promptmill.ledger.records import Entry, Snapshot
from promptmill.names import Names
from promptmill.protocol import WIRE_VERSION, answer_to_wire

__all__ = ["MEMORY_PERCENT", "enter", "forget", "look", "settle", "sweep"]

#: How many records one sweep moves at most; the next goes on.
SWEEP_LIMIT = 1000

#: Above this share of the broker's memory nothing is entered: the rest is for answers.
MEMORY_PERCENT = 75

_EXPIRED = answer_to_wire(
    TaskExpiredError(
        "the task's deadline passed before it was answered: give it more timeout_s, and see with `promptmill status` "
        "whether workers serve its model"
    )
)


def enter(names: Names, entries: Sequence[Entry]) -> Call[list[str]]:
    """See ``Ledger.enter``."""
    runs = [
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
            int(entry.streams),
            entry.submitter,
            entry.key,
            entry.digest,
        )
        for entry in entries
    ]
    return run_script(names, "enter", runs, lambda replies: [reply.decode() for reply in replies])


def settle(names: Names, record_ids: Sequence[str], answer: bytes, positions: Sequence[int] = ()) -> Call[int]:
    """See ``Ledger.settle``; here for any number of records."""
    listed = " ".join(map(str, positions))
    return run_script(names, "settle", [(record_id, answer, listed) for record_id in record_ids], sum)


def sweep(names: Names, sweeper: str, interval_s: float = 1.0, grace_s: float = 3.0) -> Call[list[str]]:
    """See ``Ledger.sweep``."""
    arguments = (sweeper, int(interval_s * 1000), int(grace_s * 1000), SWEEP_LIMIT, _EXPIRED)
    return run_script(names, "sweep", [arguments], lambda replies: [line.decode() for line in replies[0]])


def look(names: Names, record_ids: Sequence[str]) -> Call[list[Snapshot]]:
    """See ``Ledger.look``."""
    commands: list[tuple[Any, ...]] = []
    for record_id in record_ids:
        # The record first: read after the answers, it could end in between, and look lost.
        commands += [("HMGET", names.record(record_id), "open", "deadline"), ("HGETALL", names.answers(record_id))]
    return Call([*commands, ("TIME",)], _snapshots)


def _snapshots(replies: list[Any]) -> list[Snapshot]:
    *found, (seconds, microseconds) = replies
    now = seconds * 1_000_000 + microseconds
    return [
        Snapshot(
            {int(position): wire for position, wire in answers.items()},
            frozenset(map(int, waiting.split())) if waiting is not None else None,
            deadline is not None and int(deadline) <= now,
        )
        for (waiting, deadline), answers in zip(found[::2], found[1::2], strict=True)
    ]


def forget(names: Names, record_ids: Sequence[str]) -> Call[None]:
    """See ``Ledger.forget``."""
    return Call([("UNLINK", *map(names.answers, record_ids))], lambda _: None)
