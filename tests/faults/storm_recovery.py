"""How long a dead worker's prompts wait until another worker has them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from promptmill.names import Names

__all__ = ["Recoveries", "Victim", "claimed_by", "victim", "wait_for_recovery"]

#: How often the ledger is looked at, in seconds.
LOOK_EVERY_S = 0.1
#: After how many seconds a recovery is given up.
GIVE_UP_S = 60.0

#: Positions by record.
Held = Mapping[str, set[bytes]]


@dataclass(frozen=True)
class Victim:
    """A worker, frozen, and what it holds."""

    worker: str
    held: Held
    #: Those of them that already saw one worker die: after this one they have to run alone, one after the other.
    suspects: Held

    @property
    def prompts(self) -> int:
        """How many it holds."""
        return sum(map(len, self.held.values()))


@dataclass(frozen=True)
class Recovery:
    """How long it took until one dead worker's prompts were claimed elsewhere, or answered; in seconds."""

    victim: Victim
    #: Until nothing is claimed by the dead worker any more.
    noticed_s: float
    #: Until all were claimed but the suspects.
    recovered_s: float
    #: Until all were.
    all_recovered_s: float
    #: What else went wrong meanwhile, or shortly before; "" if nothing.
    besides: str = ""

    @property
    def has_others(self) -> bool:
        """Whether not all were suspects."""
        return self.victim.held != self.victim.suspects

    def __str__(self) -> str:
        seconds = f"noticed after {self.noticed_s:.1f} s, claimed elsewhere after {self.recovered_s:.1f} s"
        if self.victim.suspects:
            suspects = sum(map(len, self.victim.suspects.values()))
            seconds += f", with {suspects} suspects after {self.all_recovered_s:.1f} s"
        return (
            f"{self.victim.worker} held {self.victim.prompts} prompts; {seconds}{self.besides and f' ({self.besides})'}"
        )


class Recoveries:
    """All recoveries of a storm."""

    def __init__(self) -> None:
        self.all: list[Recovery] = []

    def undisturbed(self) -> list[Recovery]:
        """Those of one death by itself."""
        return [recovery for recovery in self.all if not recovery.besides]

    def rows(self) -> list[list[str]]:
        """A table of seconds from kill -9."""
        rows = [["kill -9 of workers that held prompts", "kills", "median s", "max s"]]
        for besides in ("", *sorted({recovery.besides for recovery in self.all if recovery.besides})):
            kills = [recovery for recovery in self.all if recovery.besides == besides]
            state = f"{besides}: " if besides else ""
            rows += [
                _row(f"{state}noticed", [kill.noticed_s for kill in kills]),
                _row(f"{state}claimed elsewhere", [kill.recovered_s for kill in kills if kill.has_others]),
                _row(f"{state}suspects, too", [kill.all_recovered_s for kill in kills if kill.victim.suspects]),
            ]
        return rows


def _row(what: str, seconds: list[float]) -> list[str]:
    if not seconds:
        return [what, "0", "", ""]
    return [what, str(len(seconds)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]


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


def victim(broker: Redis, names: Names, worker: str) -> Victim:
    """What a worker holds, which is frozen."""
    held = claimed_by(broker, names, worker)
    suspects = {}
    for record_id, positions in held.items():
        lost = {field[5:] for field in broker.hkeys(names.record(record_id)) if field.startswith(b"lost:")}
        if positions & lost:
            suspects[record_id] = positions & lost
    return Victim(worker, held, suspects)


def wait_for_recovery(broker: Redis, names: Names, victim: Victim, killed_at: float) -> Recovery:
    """Waits until all that a worker held is claimed elsewhere or answered.

    Args:
        broker: To look at.
        names: The ledger's keys.
        victim: The dead worker.
        killed_at: When it died, on the monotonic clock.
    """
    left = dict(victim.held)
    noticed_s = recovered_s = 0.0
    while True:
        left, is_noticed = _unrecovered(broker, names, left, victim.worker)
        passed_s = time.monotonic() - killed_at
        if not noticed_s and is_noticed:
            noticed_s = passed_s
        if not recovered_s and all(left[record_id] <= victim.suspects.get(record_id, set()) for record_id in left):
            recovered_s = passed_s
        if not left or passed_s > GIVE_UP_S:
            return Recovery(victim, noticed_s or passed_s, recovered_s or passed_s, passed_s)
        time.sleep(LOOK_EVERY_S)


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
