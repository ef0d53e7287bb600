"""Those who submit to a storm, each a process of its own, and the journals that they leave for the account.

Every prompt is known by its owner and its number, so that a process that was killed can go on with the prompts that are
left, and the account knows what each answer has to be.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from submitter import count_deliveries

from promptmill import Client, PromptmillError, TaskCancelledError, TaskExpiredError, TooManyDeliveriesError
from promptmill.broker import connect
from promptmill.ledger import Entry, Ledger
from promptmill.names import Names, Priority, lane_name, queue_name
from promptmill.protocol import GenerationRequest, GenerationResult, answer_to_wire, requests_to_wire
from promptmill.settings import ClientSettings
from promptmill_worker.echo import FAULT_KILL

__all__ = ["LedgerSubmitter", "Share", "kind_of", "open_journal", "prompt_of"]

#: The most words that a prompt has besides its owner and number.
MOST_WORDS = 20
#: In which a share arrives.
SHARE_VARIABLE = "STORM_SHARE"
CHUNK_SIZES = (1, 1, 2, 4, 16, 64, 128, 256)
PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.NORMAL, Priority.LOW)
CANCELLED = answer_to_wire(TaskCancelledError("the storm cancelled it"))


@dataclass(frozen=True)
class Share:
    """What one process submits.

    Attributes:
        owner: Its name.
        way: "map", or "ledger".
        url: The broker's.
        model: Served name.
        prompts: How many.
        poison: Numbers of those that kill their workers.
        began_at: When the storm began, in seconds since 1970.
        seconds: For how long the prompts are spread out from then on.
        quits_after: After how many answers a map is ended, and the rest of it cancelled; 0: it isn't.
        largest_chunk: The most prompts in one record.
        seed: Of all that it draws.
        journal: Where it writes down what the account has to know.
    """

    owner: str
    way: str
    url: str
    model: str
    prompts: int
    poison: tuple[int, ...]
    began_at: float
    seconds: float
    quits_after: int
    largest_chunk: int
    seed: str
    journal: str

    @property
    def environment(self) -> dict[str, str]:
        """Tells a process its share."""
        return {SHARE_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def read(cls) -> Share:
        """This process's share."""
        fields = json.loads(os.environ[SHARE_VARIABLE])
        return cls(**{**fields, "poison": tuple(fields["poison"])})

    def prompt(self, number: int) -> str:
        """One of its prompts."""
        return FAULT_KILL if number in self.poison else prompt_of(self.owner, number)

    def wait_for(self, number: int) -> None:
        """Waits until it is time for a prompt."""
        time.sleep(max(0.0, self.began_at + self.seconds * number / self.prompts - time.time()))

    def lines(self) -> list[dict[str, Any]]:
        """What its journal holds."""
        path = Path(self.journal)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prompt_of(owner: str, number: int) -> str:
    """A prompt of some words, which is also what the echo engine answers."""
    words = zlib.crc32(f"{owner} {number}".encode()) % MOST_WORDS
    return " ".join([owner, str(number), *["word"] * words])


def kind_of(answer: GenerationResult | PromptmillError, prompt: str) -> str:
    """What became of a prompt, in a word."""
    match answer:
        case TaskCancelledError():
            return "cancelled"
        case TaskExpiredError():
            return "expired"
        case TooManyDeliveriesError():
            return "stopped"
        case GenerationResult() if answer.text == prompt:
            return "right"
        case _:
            return "wrong"


class LedgerSubmitter:
    """Enters prompts straight into the ledger, cancels some, lets some expire, and never trims its reply stream.

    Args:
        share: What it submits; only the first ``prompts`` of them if ``submit`` is called often enough.
        journal: Opened for appending.
    """

    def __init__(self, share: Share, journal: IO[str]) -> None:
        self._share = share
        self._journal = journal
        self._names = Names("promptmill:")
        self._ledger = Ledger(connect(ClientSettings.read(broker_url=share.url)), self._names, patience_s=math.inf)
        self._chance = random.Random(f"{share.seed} {share.owner}")
        self._records = 0
        self._next = 0
        #: When to cancel what, the next one first.
        self._to_cancel: list[tuple[float, str, list[int]]] = []

    @property
    def left(self) -> int:
        """How many prompts of the share are not submitted yet."""
        return self._share.prompts - self._next

    def submit(self, count: int) -> None:
        """Enters the next ``count`` prompts as one record, written down before."""
        numbers = range(self._next, self._next + count)
        record_id, timeout_s, cancelled = uuid.uuid4().hex, 86_400.0, list[int]()
        if not set(numbers) & set(self._share.poison):
            timeout_s, cancelled = self._mischief(count)
        line = {"record": record_id, "first": self._next, "count": count}
        line |= {"expires": timeout_s < 3600, "cancelled": cancelled}
        self._journal.write(json.dumps(line) + "\n")
        requests = requests_to_wire(
            [GenerationRequest.of(self._share.prompt(number), max_tokens=100) for number in numbers]
        )
        lane = lane_name(queue_name(self._share.model), self._chance.choice(PRIORITIES))
        stream = self._names.replies(self._share.owner)
        self._ledger.enter([Entry(record_id, lane, requests, count, stream, timeout_s=timeout_s)])
        if cancelled:
            self._to_cancel.append((time.time() + self._chance.uniform(0, 1.5), record_id, cancelled))
        self._records += 1
        self._next += count

    def _mischief(self, count: int) -> tuple[float, list[int]]:
        """A deadline, and the positions that will be cancelled, of the next record."""
        match self._records % 25:
            case 4:
                return self._chance.uniform(0.2, 2.0), []
            case 9 | 19:
                return 86_400.0, [self._chance.randrange(count)]
            case 14:
                return 86_400.0, list(range(count))
        return 86_400.0, []

    def cancel_what_is_due(self, now: float) -> None:
        """Cancels what was drawn, until ``now``."""
        for due_at, record_id, positions in sorted(self._to_cancel):
            if due_at <= now:
                self._ledger.settle(record_id, CANCELLED, positions)
        self._to_cancel = [item for item in self._to_cancel if item[0] > now]

    def run(self) -> None:
        """Submits the whole share, at its pace."""
        while self.left:
            self._share.wait_for(self._next)
            self.submit(min(self._chance.choice(CHUNK_SIZES), self._share.largest_chunk, self.left))
            self.cancel_what_is_due(time.time())
        self.cancel_what_is_due(math.inf)


def run_map(share: Share, journal: IO[str]) -> None:
    """Runs what has no answer yet through ``Client.map``."""
    answered = {line["number"] for line in share.lines() if "number" in line}
    numbers = [number for number in range(share.prompts) if number not in answered]
    chance = random.Random(f"{share.seed} {share.owner} {len(answered)}")
    chunk_size = min(chance.choice(CHUNK_SIZES[2:]), share.largest_chunk)
    options: Any = {"max_in_flight": max(64, 2 * chunk_size), "ordered": chance.random() < 0.5}
    with Client(share.url, model=share.model, broker_timeout_s=60) as client:
        told = count_deliveries(client)
        results = client.map(_paced(share, numbers), max_tokens=100, chunk_size=chunk_size, on_error="yield", **options)
        for count, result in enumerate(results, start=1):
            number = numbers[result.index]
            kind = kind_of(result.error or result, share.prompt(number))
            journal.write(json.dumps({"number": number, "kind": kind}) + "\n")
            answered.add(number)
            if count == share.quits_after:
                results.close()
                break
        given_up = sorted(set(numbers) - answered) if share.quits_after else []
        twice = sum(times > 1 for times in told.values())
        journal.write(json.dumps({"given_up": given_up, "told_twice": twice}) + "\n")


def open_journal(share: Share) -> IO[str]:
    """A share's journal, for appending: every line is there once it is written, whatever becomes of the process."""
    return Path(share.journal).open("a", buffering=1, encoding="utf-8")


def _paced(share: Share, numbers: Sequence[int]) -> Iterator[str]:
    for number in numbers:
        share.wait_for(number)
        yield share.prompt(number)


def main(share: Share) -> None:
    """Submits a share."""
    with open_journal(share) as journal:
        if share.way == "map":
            run_map(share, journal)
        else:
            LedgerSubmitter(share, journal).run()


if __name__ == "__main__":
    main(Share.read())
