"""What goes into the ledger, and what comes out of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["Claim", "Entry", "Piece", "Snapshot"]


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
    limit_prompts: int = sys.maxsize
    #: A plain Celery call: the message to publish if it has to be queued again, without its delivery tag.
    message_halves: tuple[str, str] | None = None
    #: Whether a prompt's texts can be read while they are made, see ``Ledger.emit``.
    streams: bool = False
    #: Who shares a lane's turns with others, see ``lua/turns.lua``; unless it is named, whom ``reply`` belongs to.
    submitter: str = ""
    #: Of a record of one prompt: its idempotency key, as ``idempotency.key_and_digest`` writes it; "" for none.
    key: str = ""
    #: With a key: what tells this request from others.
    digest: str = ""


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
    #: Of its lane; what is queued again has the highest, 0.
    priority: int
    #: The place of its first prompt in the lane's order, see ``lua/turns.lua``; less goes first.
    turn: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What ``emit`` writes: a piece of a text that is being made."""

    record_id: str
    #: The claim that it comes from.
    token: str
    position: int
    #: Number of the choice.
    choice: int
    #: Characters of that choice's text before it.
    offset: int
    #: Whether another run of the prompt would give the same text.
    repeats: bool
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the broker holds of one record."""

    answers: dict[int, bytes]
    #: Positions that wait in the queue; None if there is no record (any more).
    open: frozenset[int] | None
    #: Whether the record is past its deadline, and waits for somebody to end it.
    overdue: bool = False
