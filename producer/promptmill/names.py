"""Names in the broker: queues, lanes and keys.

Every key begins with the prefix (``promptmill:`` by default) and is bounded:

| key | type | holds | its end |
|---|---|---|---|
| ``record:{record}`` | hash | one accepted chunk: requests, lane, claims | its last answer, or its deadline |
| ``answers:{record}`` | hash | position → answer | its TTL, from its record's end; ``map`` deletes it once read |
| ``key:{sha256}`` | hash | whose an idempotency key is: record, digest | its TTL, deadline and answer's TTL |
| ``lane:{queue}|{priority}`` | sorted set | queued records by score | one entry a queued record |
| ``turns:{queue}|{priority}`` | sorted set | the same by whose turn it is | one entry a queued record |
| ``ends:{queue}|{priority}`` | sorted set | where submitters' turns end | pruned as they pass; goes with the lane |
| ``lane_time``, ``served``, ``lifted`` | hash | a lane's time, and when it got a turn | a field goes with its lane |
| ``granted`` | hash | the record that a claim got, if not its pointer's | a field goes with its claim |
| ``leases`` | sorted set | claims by the time their lease ends | one entry a claim |
| ``deadlines`` | sorted set | records by deadline | one entry a record |
| ``lanes`` | set | lanes that hold records or messages | pruned by the sweep |
| ``swept`` | string | when the last sweep was | one value |
| ``watermarks``, ``marks`` | hash | the sweep's memory, by lane | one field a lane each |
| ``prompts`` | hash | prompts that are queued or run, by queue | a field goes with its queue's last prompt |
| ``totals`` | hash | prompts that ever came and ended, by queue | at 1,000 fields it begins anew |
| ``rates`` | hash | prompts that come and end a second, by queue | its TTL, a minute |
| ``history``, ``history_turn`` | stream, string | the fleet, each twenty seconds | an hour's points; their TTLs |
| ``paused`` | hash | queues of which nothing is taken, and since when | a field goes when its queue is resumed |
| ``deaths`` | sorted set | workers lost in the last ten minutes | pruned at each loss; its TTL |
| ``dead_letters`` | stream | prompts that killed their workers | the newest 1,000 |
| ``waiting:{queue}`` | string | the claim that waits to run alone | its start, or its TTL, half a minute |
| ``memory`` | string | memory that new prompts may still take | its TTL, half a second |
| ``clock`` | string | the last time given out | one value |
| ``sweeper`` | string | who sweeps now | its TTL, a sweep interval |
| ``replies:{client}`` | stream | answers on their way to a client | trimmed as they are read; those of ten minutes |
| ``stream:{record}:{position}`` | stream | pieces of a streamed text | the newest 20,000; its TTL, ten minutes |
| ``worker:{name}`` | string | a worker's fleet record | its TTL, a few beats |
| ``workers`` | sorted set | worker names by expiry | pruned at each beat |

On the channel ``settled`` workers hear of prompts that were cancelled.

The queues themselves are Celery's: the list ``promptmill.{model}``, one more for each other priority, and
``promptmill.{model}:again`` for what is queued again.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

__all__ = [
    "PRIORITY_STEPS",
    "Names",
    "Priority",
    "again_queue_name",
    "lane_name",
    "lanes_of",
    "list_name",
    "model_of_queue",
    "priority_of",
    "queue_name",
]

#: Celery's name of the task that works off a ledger record.
RUN_TASK = "promptmill.run"
#: Celery's name of the task that foreign applications send.
GENERATE_TASK = "promptmill.generate"
#: In events and in what `inspect` shows: arguments and result of this task were written by our worker, and hold neither
#: prompt nor answer.
SHOWN_MARK = "promptmill_shown"

PriorityName = Literal["high", "normal", "low"]


class Priority(IntEnum):
    """Celery priorities as Redis has them: a smaller number goes first."""

    #: What foreign calls without a priority have; and records that are queued again, in a queue of their own.
    FRONT = 0
    HIGH = 3
    NORMAL = 6
    LOW = 9


#: One list a step in the broker; Celery's and Flower's transport options must name the same.
PRIORITY_STEPS = [int(priority) for priority in Priority]


def priority_of(name: PriorityName) -> Priority:
    """The priority that a user calls ``name``."""
    return {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}[name]


def queue_name(model: str) -> str:
    """The Celery queue of a served model."""
    return f"promptmill.{model}"


def again_queue_name(model: str) -> str:
    """The Celery queue of what is queued again; workers look at it first."""
    return f"{queue_name(model)}:again"


def model_of_queue(queue: str) -> str:
    """The served name that a queue belongs to."""
    return queue.removeprefix(queue_name("")).removesuffix(":again")


def lane_name(queue: str, priority: int) -> str:
    """The ledger's name for one priority of one queue."""
    return f"{queue}|{priority}"


def lanes_of(model: str) -> list[str]:
    """All lanes in which a model's records are queued; those that are queued again last."""
    lanes = [lane_name(queue_name(model), priority) for priority in Priority]
    return [*lanes, lane_name(again_queue_name(model), Priority.FRONT)]


def list_name(lane: str) -> str:
    """The list in which Celery's transport keeps the messages of a lane."""
    queue, _, priority = lane.rpartition("|")
    return queue if priority == "0" else f"{queue}\x06\x16{priority}"


class Names:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def record(self, record_id: str) -> str:
        """One accepted chunk."""
        return f"{self.prefix}record:{record_id}"

    def answers(self, record_id: str) -> str:
        """The answers of one chunk."""
        return f"{self.prefix}answers:{record_id}"

    def key(self, sha256: str) -> str:
        """The record that holds one idempotency key."""
        return f"{self.prefix}key:{sha256}"

    def lane(self, lane: str) -> str:
        """The queued records of one lane."""
        return f"{self.prefix}lane:{lane}"

    def replies(self, client_id: str) -> str:
        """The reply stream of one client."""
        return f"{self.prefix}replies:{client_id}"

    def stream(self, record_id: str, position: int) -> str:
        """The pieces of one prompt's texts."""
        return f"{self.prefix}stream:{record_id}:{position}"

    def worker(self, name: str) -> str:
        """One worker's fleet record."""
        return f"{self.prefix}worker:{name}"

    @property
    def workers(self) -> str:
        """The names of all living workers."""
        return f"{self.prefix}workers"

    @property
    def lanes(self) -> str:
        """The lanes that hold records or messages."""
        return f"{self.prefix}lanes"

    @property
    def paused(self) -> str:
        """The queues that are paused."""
        return f"{self.prefix}paused"

    @property
    def prompts(self) -> str:
        """How many prompts each model's queue and workers hold."""
        return f"{self.prefix}prompts"

    @property
    def totals(self) -> str:
        """How many prompts ever came and ended, of each model."""
        return f"{self.prefix}totals"

    @property
    def rates(self) -> str:
        """How many prompts come and end a second, of each model."""
        return f"{self.prefix}rates"

    @property
    def history(self) -> str:
        """The stream of what the fleet was like in the last hour."""
        return f"{self.prefix}history"

    @property
    def history_turn(self) -> str:
        """Taken by whoever adds the next point to it."""
        return f"{self.prefix}history_turn"

    @property
    def clock(self) -> str:
        """The last time that the ledger gave out."""
        return f"{self.prefix}clock"

    @property
    def dead_letters(self) -> str:
        """The stream of prompts that killed their workers."""
        return f"{self.prefix}dead_letters"

    @property
    def settled(self) -> str:
        """The channel on which workers hear of prompts that were cancelled."""
        return f"{self.prefix}settled"

    @property
    def leases(self) -> str:
        """All claims by the end of their lease."""
        return f"{self.prefix}leases"
