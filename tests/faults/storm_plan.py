"""What a storm is to be: how much of everything, and all that is drawn before it begins."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storm_submitters import MOST_WORDS, Share

__all__ = ["MODEL", "Event", "Plan"]

MODEL = "echo"

#: Each busy worker's part of all that has to be generated, and its places. The last is run by a launcher.
WORKERS = ((0.45, 64), (0.3, 32), (0.15, 8), (0.1, 4))
#: How much faster all of them together are than they had to be: they are often away.
SLACK = 1.6
#: Words of a prompt on average: some, its owner and its number.
WORDS = MOST_WORDS / 2 + 2


@dataclass(frozen=True)
class Event:
    """One thing that goes wrong."""

    #: Seconds from the storm's beginning.
    at_s: float
    #: Name of the fault.
    fault: str
    #: Draws its details.
    chance: random.Random


@dataclass(frozen=True)
class Plan:
    """A storm before it begins.

    Attributes:
        seed: Everything is drawn from it.
        prompts: How many are submitted in all, but for plain calls and those of the idle worker.
        seconds: How long things go wrong.
        faults: How often each fault comes, by the name of its method of ``Faults``.
        poison: How many prompts kill their workers.
        plain_calls: How many plain Celery calls.
        quitting_maps: How many maps are ended early.
        options: Of all workers, besides their speed and places.
        lease_s: What the options, or the defaults, make it.
        cut_s: How long a worker is cut off, at least and at most, in seconds.
        largest_chunk: The most prompts in one record.
        quiet_s: After how many seconds of quiet what has no answer is stuck.
        celery_quiet_s: How long to wait for messages that Celery's transport holds back as not acknowledged.
    """

    seed: str
    prompts: int
    seconds: float
    faults: Mapping[str, int]
    poison: int
    plain_calls: int
    quitting_maps: int
    quiet_s: float
    celery_quiet_s: float = 0.0
    options: tuple[str, ...] = ()
    lease_s: float = 6.0
    cut_s: tuple[float, float] = (8.0, 15.0)
    largest_chunk: int = 256
    #: Each map process's and each ledger process's share of the prompts, in per cent.
    maps_percent: tuple[int, ...] = (22, 18)
    ledgers_percent: tuple[int, ...] = (30, 20, 10)
    #: Prompts for the idle worker at each of its cuts.
    idle_prompts: int = field(default=5)

    def events(self) -> list[Event]:
        """All that goes wrong, in order; each kind spread over the whole time."""
        events = []
        for fault, count in self.faults.items():
            chance = random.Random(f"{self.seed} {fault}")
            for number in range(count):
                at_s = (number + chance.uniform(0.1, 0.9)) / count * self.seconds
                events.append(Event(at_s, fault, random.Random(f"{self.seed} {fault} {number}")))
        return sorted(events, key=lambda event: event.at_s)

    def worker_options(self) -> list[tuple[str, ...]]:
        """Options of the busy workers: together they are somewhat faster than the submitters."""
        words_per_s = SLACK * WORDS * self.prompts / self.seconds
        return [
            (
                *("--echo-tokens-per-s", f"{part * words_per_s / places:.2f}"),
                *("--max-batch", str(places), "--max-in-flight", str(places)),
                *self.options,
            )
            for part, places in WORKERS
        ]

    def shares(self, url: str, began_at: float, folder: Path) -> list[Share]:
        """What each process submits; all that are killed and started again first."""
        counts = {f"map{number}": self.prompts * part // 100 for number, part in enumerate(self.maps_percent)}
        quitters = {f"quitter{number}": self.prompts // 200 for number in range(self.quitting_maps)}
        ledgers = {f"ledger{number}": self.prompts * part // 100 for number, part in enumerate(self.ledgers_percent)}
        ledgers["ledger0"] += self.prompts - sum(counts.values()) - sum(quitters.values()) - sum(ledgers.values())
        poison = self._poison({**ledgers, **counts})
        return [
            Share(
                owner=owner,
                way="ledger" if owner in ledgers else "map",
                url=url,
                model=MODEL,
                prompts=count,
                poison=poison.get(owner, ()),
                began_at=began_at,
                seconds=0.95 * self.seconds,
                quits_after=count // 2 if owner in quitters else 0,
                largest_chunk=self.largest_chunk,
                seed=self.seed,
                journal=str(folder / f"{owner}.journal"),
            )
            for owner, count in {**counts, **quitters, **ledgers}.items()
        ]

    def _poison(self, counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Numbers of the prompts that kill, by owner; the first soon, as it takes a while until one is stopped."""
        found: dict[str, tuple[int, ...]] = {}
        for number in range(self.poison):
            owner = list(counts)[number % len(counts)]
            found[owner] = (*found.get(owner, ()), counts[owner] * (1 + 10 * number) // (12 * self.poison))
        return found
