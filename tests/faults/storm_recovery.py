"""How long a dead worker's prompts wait until another worker has them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from promptmill.names import Names

__all__ = ["Recoveries", "Recovery", "claimed_by", "wait_for_recovery"]

#: How often the ledger is looked at, in seconds.
LOOK_EVERY_S = 0.1
#: After how many seconds a recovery is given up.
GIVE_UP_S = 120.0

#: Positions by record.
Held = Mapping[str, set[bytes]]


@dataclass(frozen=True)
class Recovery:
    """What became of one dead worker's prompts."""

    prompts: int
    #: From its death until it was noticed: until nothing is claimed by it any more.
    noticed_s: float
    #: From its death until all its prompts were claimed elsewhere, or answered.
    recovered_s: float
    #: Whether the broker was restarted meanwhile, or shortly before.
    disturbed: bool = False


class Recoveries:
    """All recoveries of a storm."""

    def __init__(self) -> None:
        self.all: list[Recovery] = []

    def rows(self) -> list[tuple[str, str]]:
        """For the account."""
        rows = []
        for disturbed, state in ((False, "the broker is there"), (True, "around its restarts")):
            kills = [recovery for recovery in self.all if recovery.disturbed == disturbed]
            rows += [
                (f"kill -9 to noticed, {state}", _summary([recovery.noticed_s for recovery in kills])),
                (f"kill -9 to claimed elsewhere, {state}", _summary([recovery.recovered_s for recovery in kills])),
            ]
        return [*rows, ("prompts that the killed workers held", str(sum(recovery.prompts for recovery in self.all)))]


def _summary(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"{len(seconds)} kills: median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s"


def claimed_by(broker: Redis, names: Names, worker: str) -> dict[str, set[bytes]]:
    """The unanswered prompts that a worker holds, by record."""
    held: dict[str, set[bytes]] = {}
    for token in broker.zrange(names.leases, 0, -1):
        if token.endswith(b"@" + worker.encode()):
            record_id = token.rpartition(b"/")[0].decode()
            positions = (broker.hget(names.record(record_id), b"claim:" + token) or b"").split()
            left = set(positions) - set(broker.hkeys(names.answers(record_id)))
            if left:
                held.setdefault(record_id, set()).update(left)
    return held


def wait_for_recovery(broker: Redis, names: Names, held: Held, worker: str, killed_at: float) -> Recovery:
    """Waits until all of ``held`` was claimed elsewhere or answered.

    Args:
        broker: To look at.
        names: The ledger's keys.
        held: What the worker held.
        worker: The dead worker.
        killed_at: When it died, on the monotonic clock.
    """
    left, noticed_s, passed_s = dict(held), 0.0, 0.0
    while left and passed_s < GIVE_UP_S:
        time.sleep(LOOK_EVERY_S)
        left, is_noticed = _unrecovered(broker, names, left, worker)
        passed_s = time.monotonic() - killed_at
        noticed_s = noticed_s if noticed_s and is_noticed else passed_s
    return Recovery(sum(map(len, held.values())), noticed_s, passed_s)


def _unrecovered(broker: Redis, names: Names, held: Held, worker: str) -> tuple[dict[str, set[bytes]], bool]:
    """What of ``held`` is unanswered and claimed by nobody else; and whether the dead worker claims nothing of it."""
    left: dict[str, set[bytes]] = {}
    is_noticed = True
    for record_id, positions in held.items():
        waiting = set(positions) - set(broker.hkeys(names.answers(record_id)))
        fields = broker.hgetall(names.record(record_id)) if waiting else {}
        for field, claimed in fields.items():
            if field.startswith(b"claim:") and field.endswith(b"@" + worker.encode()):
                is_noticed = False
            elif field.startswith(b"claim:"):
                waiting -= set(claimed.split())
        if waiting and fields:
            left[record_id] = waiting
    return left, is_noticed
