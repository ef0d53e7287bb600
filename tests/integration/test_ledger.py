"""The ledger's rules, each on real brokers: entering, claiming, renewing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from brokers import client_of

from promptmill.errors import TaskCancelledError
from promptmill.ledger import Claim, Entry, Ledger
from promptmill.names import PRIORITY_STEPS, Names, Priority, lane_name
from promptmill.protocol import answer_to_wire

CANCELLED = answer_to_wire(TaskCancelledError("cancelled"))


class Bench:
    """A ledger on a broker, and what a test does to it from outside."""

    def __init__(self, url: str, names: Names | None = None, queue: str = "promptmill.m") -> None:
        self.redis = client_of(url)
        self.names = names or Names("promptmill:")
        self.ledger = Ledger(self.redis, self.names)
        self.queue = queue
        self.stream_key = self.names.replies("client")

    def enter(self, record_id: str, count: int = 1, priority: int = Priority.NORMAL, **fields: Any) -> str:
        queue = f"{self.queue}:again" if "message_halves" in fields else self.queue
        entry = Entry(record_id, lane_name(queue, priority), b"[]", count, **{"reply": self.stream_key, **fields})
        return self.ledger.enter([entry])[0]

    def enter_plain_call(self, record_id: str, **fields: Any) -> str:
        """Enters a plain Celery call as the worker that has popped its message does: among what is queued again."""
        halves = (f'{{"call": "{record_id}", "tag": "', '"}')
        return self.enter(record_id, 1, Priority.FRONT, reply="", message_halves=halves, **fields)

    def lists(self) -> list[str]:
        """The queue's lists, in the order in which Celery's transport looks into them."""
        return [f"{self.queue}:again", self.queue, *(f"{self.queue}\x06\x16{step}" for step in PRIORITY_STEPS[1:])]

    def messages(self) -> list[dict[str, Any]]:
        """All messages of the queue; the next to be popped comes first."""
        return [json.loads(message) for name in self.lists() for message in reversed(self.redis.lrange(name, 0, -1))]

    def pointers(self) -> list[tuple[str, str, str, int]]:
        """(record, lane, score, count) of all pointers; the next to be popped comes first."""
        return [_pointer(message) for message in self.messages()]

    def pop(self) -> tuple[str, str, str, int] | None:
        """Takes the next pointer out of the queue."""
        for name in self.lists():
            if (message := self.redis.rpop(name)) is not None:
                return _pointer(json.loads(message))
        return None

    def claim(self, record_id: str, name: str = "a", room: int = 64, lane: str = "", score: str = "0") -> Claim | str:
        return self.ledger.claim(record_id, f"{record_id}/{name}", room, 60.0, 3, lane, score)

    def claimed(self, record_id: str, name: str = "a", room: int = 64) -> Claim:
        claim = self.claim(record_id, name, room)
        assert isinstance(claim, Claim)
        return claim

    def pop_and_claim(self, name: str = "a", room: int = 64) -> Claim:
        pointer = self.pop()
        assert pointer is not None
        claim = self.claim(pointer[0], name, room, *pointer[1:3])
        assert isinstance(claim, Claim)
        return claim

    def finish(self, claim: Claim, answers: dict[int, bytes], error: bool = False, last: bool = False) -> Any:
        sent = [(position, error, wire) for position, wire in answers.items()]
        return self.ledger.finish(claim.record_id, claim.token, sent, last)

    def finish_all(self, claim: Claim) -> None:
        assert self.finish(claim, dict.fromkeys(claim.positions, b"{}"), last=True) == ()

    def answers(self, record_id: str) -> dict[int, bytes]:
        return self.ledger.look([record_id])[0].answers

    def open(self, record_id: str) -> frozenset[int] | None:
        return self.ledger.look([record_id])[0].open

    def stream(self) -> list[tuple[str, int, bytes]]:
        """All that the submitter was told."""
        entries = [fields for _, fields in self.redis.xrange(self.stream_key)]
        return [
            (fields[b"record"].decode(), int(position), wire)
            for fields in entries
            for position, wire in fields.items()
            if position != b"record"
        ]

    def expire_lease(self, claim: Claim) -> None:
        """As if the worker that holds it were long dead."""
        self.redis.zadd(self.names.leases, {claim.token: 1})

    def expire_record(self, record_id: str) -> None:
        """As if its deadline had passed."""
        self.redis.zadd(f"{self.names.prefix}deadlines", {record_id: 1})
        self.redis.hset(self.names.record(record_id), "deadline", 1)

    def sweep(self, grace_s: float = 0.0) -> list[str]:
        """Sweeps, whoever swept before."""
        self.redis.delete(f"{self.names.prefix}sweeper")
        return self.ledger.sweep("sweeper", 60.0, grace_s)

    def later(self, seconds: int) -> None:
        """As if so much time had passed on the broker."""
        self.redis.incrby(f"{self.names.prefix}clock", seconds * 1_000_000)

    def keys(self) -> set[str]:
        """Our keys, without the prefix."""
        prefix = self.names.prefix
        return {key.decode().removeprefix(prefix) for key in self.redis.scan_iter(f"{prefix}*")}


def _pointer(message: dict[str, Any]) -> tuple[str, str, str, int]:
    if "call" in message:
        return message["call"], "", "0", 1
    record_id, lane, score, count = json.loads(message["body"])[0]
    return record_id, lane, score, int(count)


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


# Entering.


def test_a_record_is_entered_with_one_pointer_to_it(bench: Bench) -> None:
    assert bench.enter("r", 3, Priority.LOW) == "entered"
    [(record_id, lane, score, count)] = bench.pointers()
    assert (record_id, lane, count) == ("r", "promptmill.m|9", 3)
    assert bench.redis.zscore(bench.names.lane(lane), "r") == float(score)


def test_entering_what_is_there_changes_nothing(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.pop_and_claim(room=1)
    before = bench.pointers()
    assert bench.enter("r", 3) == "known"
    assert bench.pointers() == before
    assert bench.open("r") == {1, 2}


def test_entering_what_is_answered_does_not_start_it_again(bench: Bench) -> None:
    bench.enter("r", 2)
    bench.finish_all(bench.pop_and_claim())
    assert bench.enter("r", 2) == "answered"
    assert bench.pointers() == []


def test_higher_priorities_go_first_and_equal_ones_in_the_order_of_entering(bench: Bench) -> None:
    for record_id, priority in [("l", 9), ("n1", 6), ("n2", 6), ("h", 3)]:
        bench.enter(record_id, 1, priority)
    assert [bench.pop_and_claim().record_id for _ in range(4)] == ["h", "n1", "n2", "l"]


def test_the_clock_never_goes_back(bench: Bench) -> None:
    tomorrow = 10**15 * 4
    bench.redis.set(f"{bench.names.prefix}clock", tomorrow)  # the broker's host was set back by years
    bench.enter("a")
    bench.enter("b")
    assert [score for _, _, score, _ in bench.pointers()] == [str(tomorrow + 1), str(tomorrow + 2)]


# Claiming.


def test_a_claim_hands_over_the_request_and_all_open_prompts(bench: Bench) -> None:
    requests = '"%s @id@ é"\n"\\u00e9"\n"\\\\"'.encode()
    bench.ledger.enter([Entry("r", "promptmill.m|6", requests, 3)])
    claim = bench.pop_and_claim()
    assert claim.requests == requests
    assert claim.positions == (0, 1, 2)
    assert claim.attempts == (1, 1, 1)
    assert claim.answer is None
    assert 0 < claim.queued_s < claim.time_left_s <= 86_400
    assert bench.pointers() == []


def test_a_claim_takes_no_more_than_there_is_room_for_and_offers_the_rest_at_once(bench: Bench) -> None:
    bench.enter("first", 5)
    bench.enter("second", 1)
    assert bench.pop_and_claim("a", room=2).positions == (0, 1)
    [_, (record_id, lane, _, count)] = bench.pointers()
    assert (record_id, lane, count) == ("first", "promptmill.m|6", 3)
    # Its submitter's other record waits until it is done, whichever of the two a pointer names.
    assert bench.pop_and_claim("b", room=2).positions == (2, 3)
    assert bench.pop_and_claim("c", room=2).positions == (4,)
    assert bench.pop_and_claim("d").record_id == "second"
    assert bench.pointers() == []


def test_a_claim_is_handed_its_own_requests_in_the_order_of_its_positions(bench: Bench) -> None:
    bench.ledger.enter([Entry("r", "promptmill.m|6", b"zero\none\ntwo\nthree", 4)])
    first, second = bench.claimed("r", "a", room=1), bench.claimed("r", "b", room=2)
    assert (first.requests, second.requests) == (b"zero", b"one\ntwo")
    bench.ledger.put_back("r", first.token)
    third = bench.claimed("r", "c")
    assert (third.positions, third.requests) == ((3, 0), b"three\nzero")
    bench.ledger.put_back("r", third.token)
    bench.ledger.put_back("r", second.token)
    assert bench.claimed("r", "d").requests == b"three\nzero\none\ntwo"


def test_a_claim_whose_reply_was_lost_is_granted_again(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.claimed("r", "a", room=2)
    assert bench.claimed("r", "a", room=2).positions == (0, 1)
    assert bench.open("r") == {2}


def test_a_claim_granted_again_leaves_out_what_was_answered_meanwhile(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.claimed("r", "a", room=2)
    bench.ledger.settle("r", CANCELLED, [0])
    claim = bench.claimed("r", "a", room=2)
    assert claim.positions == (1,)
    assert bench.finish(claim, {1: b"{}"}, last=True) == ()


def test_what_others_hold_is_left_to_them(bench: Bench) -> None:
    bench.enter("r", 2)
    bench.claimed("r", "a")
    assert bench.claim("r", "b") == "leased"


def test_a_record_that_is_gone_is_skipped(bench: Bench) -> None:
    assert bench.claim("r") == "gone"
    assert bench.keys() <= {"clock"}


def test_a_record_past_its_deadline_is_not_handed_out(bench: Bench) -> None:
    bench.enter("r")
    bench.expire_record("r")
    assert bench.claim("r") == "gone"


def test_an_answered_prompt_is_not_handed_out(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.ledger.settle("r", CANCELLED, [0, 2])
    assert bench.claimed("r").positions == (1,)


# Renewing.


def test_a_lease_is_renewed_and_what_is_lost_is_named(bench: Bench) -> None:
    bench.enter("r", 2)
    claim = bench.claimed("r", room=1)
    before = bench.redis.zscore(bench.names.leases, claim.token)
    assert bench.ledger.renew([claim.token, "r/lost"], 600.0) == ["r/lost"]
    assert bench.redis.zscore(bench.names.leases, claim.token) > before + 500e6
    assert bench.redis.zcard(bench.names.leases) == 1
