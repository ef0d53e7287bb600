"""What a storm has left: every prompt's fate, and every key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from redis import Redis
from storm_submitters import Share, kind_of

from promptmill.names import Names
from promptmill.protocol import answer_from_wire
from promptmill.task import task_id
from promptmill_worker.echo import FAULT_KILL

__all__ = ["FATES", "Account", "account_of_ledger", "account_of_map", "keys_left", "messages_left"]

#: What may become of a prompt. "right" to "stopped" are answers; those of which there must be none come after.
FATES = (
    *("right", "cancelled", "expired", "stopped"),
    *("wrong", "not asked for", "twice", "lost", "stuck"),
)

#: Keys that stay when all is over, see ``promptmill.names``.
FOR_GOOD = {
    "clock",
    "totals",
    "history",
    "history_turn",
    "rates",
    "swept",
    "lanes",
    "watermarks",
    "workers",
    "dead_letters",
}
#: Keys, by what they begin with, that go by themselves.
FOR_A_TIME = ("sweeper", "memory", "deaths", "worker:", "answers:", "replies:")


@dataclass
class Account:
    """The fates of what one way of submitting has submitted."""

    way: str
    submitted: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    #: Tasks of prompts that kill their workers.
    poison: set[str] = field(default_factory=set)
    #: What should not have happened, for a look at it.
    strange: list[str] = field(default_factory=list)

    def note(self, fate: str, what: str, *, allowed: bool = True) -> None:
        """Counts one prompt's fate; one that nobody has asked for is counted as that."""
        fate = fate if allowed else "not asked for"
        self.fates[fate] += 1
        if fate in FATES[4:]:
            self.strange.append(f"{fate}: {what}")

    def row(self) -> list[str]:
        """For a table of ``submitted`` and FATES."""
        return [self.way, str(self.submitted), *(str(self.fates[fate]) for fate in FATES)]


def account_of_map(shares: Iterable[Share]) -> Account:
    """What processes with ``Client.map`` have written down, each by its numbers."""
    account = Account("Client.map")
    for share in shares:
        lines = share.lines()
        told = Counter(line["number"] for line in lines if "number" in line)
        given_up = {number for line in lines for number in line.get("given_up", ())}
        account.submitted += share.prompts
        for number in range(share.prompts):
            if number not in told:
                account.note("cancelled" if number in given_up else "stuck", f"{share.owner} {number}")
        for line in lines:
            if "number" in line:
                is_poison = line["number"] in share.poison
                allowed = line["kind"] != "cancelled" and line["kind"] != "expired"
                allowed = allowed and (line["kind"] == "stopped") == is_poison
                account.note(line["kind"], f"{share.owner} {line['number']}", allowed=allowed)
            account.fates["twice"] += line.get("told_twice", 0)
        account.fates["twice"] += sum(times - 1 for times in told.values())
    return account


def account_of_ledger(shares: Iterable[Share], broker: Redis, names: Names) -> Account:
    """What came through the reply streams of those who use the ledger directly, every entry of them."""
    account = Account("the ledger")
    for share in shares:
        told: Counter[str] = Counter()
        answers: dict[str, bytes] = {}
        for task, wire in _entries(broker, names.replies(share.owner)):
            told[task] += 1
            answers.setdefault(task, wire)
        for line in share.lines():
            account.submitted += line["count"]
            for position in range(line["count"]):
                number, task = line["first"] + position, task_id(line["record"], position)
                wire = answers.get(task)
                if wire is None:
                    there = broker.exists(names.record(line["record"]))
                    account.note("stuck" if there else "lost", f"{share.owner} {number} {task}")
                    continue
                kind = kind_of(answer_from_wire(wire), share.prompt(number))
                is_poison = number in share.poison
                allowed = {"cancelled": position in line["cancelled"], "expired": line["expires"]}
                account.note(
                    kind, f"{share.owner} {number} {task}", allowed=allowed.get(kind, (kind == "stopped") == is_poison)
                )
                if is_poison:
                    account.poison.add(task)
                if told[task] > 1:
                    account.note("twice", f"{share.owner} {number} {task}")
    return account


def _entries(broker: Redis, stream: str) -> Iterator[tuple[str, bytes]]:
    """Task and answer of all that a reply stream ever told."""
    start = "-"
    while page := broker.xrange(stream, start, count=1000):
        for _, fields in page:
            record_id = fields.pop(b"record").decode()
            for position, wire in fields.items():
                yield task_id(record_id, int(position)), wire
        start = f"({page[-1][0].decode()}"


def keys_left(broker: Redis, names: Names) -> list[str]:
    """Keys of ours that should have gone, or that go by themselves and have no time set."""
    left = []
    for key in broker.scan_iter(f"{names.prefix}*", count=1000):
        name = key.decode().removeprefix(names.prefix)
        if name in FOR_GOOD or (name.startswith(FOR_A_TIME) and broker.ttl(key) != -1):
            continue
        left.append(name)
    return sorted(left)


def messages_left(broker: Redis, queues: Iterable[str]) -> dict[str, int]:
    """How many messages are left in queues, by list."""
    lists = [key for queue in queues for key in broker.scan_iter(f"{queue}*") if broker.type(key) == b"list"]
    return {key.decode(): broker.llen(key) for key in lists}


@dataclass(frozen=True)
class Letter:
    """One dead letter."""

    task: str
    #: Whether its prompt really kills workers.
    is_poison: bool


def dead_letters(broker: Redis, names: Names) -> list[Letter]:
    """All dead letters."""
    letters = [fields for _, fields in broker.xrange(names.dead_letters)]
    return [
        Letter(fields[b"task"].decode(), json.loads(fields[b"request"]).get("prompt") == FAULT_KILL)
        for fields in letters
    ]
