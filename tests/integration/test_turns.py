"""Whose turn it is: priorities, and fairness between submitters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from brokers import client_of
from test_ledger import CANCELLED, Bench

from promptmill import Client
from promptmill.ledger import Claim
from promptmill.names import Priority


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def served(bench: Bench, room: int = 64) -> Iterator[Claim]:
    """All claims that workers get from now on, each finished at once."""
    number = 0
    while pointer := bench.pop():
        claim = bench.claim(pointer[0], f"w{number}", room, *pointer[1:3])
        number += 1
        if isinstance(claim, Claim):
            bench.finish_all(claim)
            yield claim


def test_ten_prompts_beside_a_long_queue_of_somebody_elses_go_next(bench: Bench) -> None:
    for number in range(500):
        bench.enter(f"bulk{number}", 4, submitter="bulk")
    claims = served(bench)
    assert [next(claims).record_id for _ in range(3)] == ["bulk0", "bulk1", "bulk2"]
    for number in range(10):
        bench.enter(f"web{number}", 1, submitter="web")
    order = [claim.record_id for claim in claims]
    # A bulk chunk of 4 is the price of four of the other's prompts.
    assert [order.index(f"web{number}") for number in range(10)] == sorted(order.index(f"web{n}") for n in range(10))
    assert order.index("web9") <= 13
    assert [name for name in order if name.startswith("bulk")] == [f"bulk{number}" for number in range(3, 500)]


def test_submitters_share_by_prompts_and_not_by_chunks(bench: Bench) -> None:
    for number in range(40):
        bench.enter(f"large{number}", 10, submitter="large")
        for part in range(3):
            bench.enter(f"small{number}-{part}", 2, submitter="small")
    shares: Counter[str] = Counter()
    for claim in served(bench):
        shares[claim.record_id[:5]] += len(claim.positions)
        if sum(shares.values()) > 20 and shares["small"] < 240:
            assert abs(shares["large"] - shares["small"]) <= 10
    assert shares == {"large": 400, "small": 240}


def test_who_comes_back_after_a_while_has_no_more_of_a_claim_than_others(bench: Bench) -> None:
    for number in range(30):
        bench.enter(f"busy{number}", 1, submitter="busy")
    claims = served(bench)
    for _ in range(20):
        next(claims)
    for number in range(10):
        bench.enter(f"late{number}", 1, submitter="late")
    order = [claim.record_id[:4] for claim in claims]
    assert abs(order[:10].count("late") - 5) <= 1


def test_no_pointer_is_missed_for_a_turn_that_went_to_another(bench: Bench) -> None:
    for number in range(600):
        bench.enter(f"a{number}", 2, submitter="a")
    for number in range(200):
        bench.enter(f"b{number}", 1, submitter="b")
        bench.enter(f"c{number}", 3, submitter="c")
    claimed: Counter[str] = Counter()
    for number, claim in enumerate(served(bench, room=2)):
        claimed[claim.record_id] += len(claim.positions)
        if number % 7 == 0:
            assert bench.sweep() == []
    assert len(claimed) == 1000
    assert sum(claimed.values()) == 600 * 2 + 200 * 4
    assert bench.pointers() == []


def test_a_claim_says_which_record_was_granted_and_says_so_again(bench: Bench) -> None:
    bench.enter("a0", 2, submitter="a")
    bench.enter("a1", 2, submitter="a")
    bench.enter("b0", 2, submitter="b")
    first = bench.pop_and_claim("w0")
    assert (first.record_id, first.token, first.priority, first.turn) == ("a0", "a0/w0", Priority.NORMAL, 0)
    pointer = bench.pop()
    assert pointer is not None
    assert pointer[0] == "a1"
    for _ in range(2):  # the reply was lost
        granted = bench.claim(pointer[0], "w1", 64, *pointer[1:3])
        assert isinstance(granted, Claim)
        assert (granted.record_id, granted.token, granted.turn) == ("b0", "b0/w1", 0)
    assert bench.ledger.renew(["b0/w1"], 60.0) == []
    assert bench.finish(granted, dict.fromkeys(granted.positions, b"{}"), last=True) == ()
    last = bench.pop_and_claim("w2")
    assert (last.record_id, last.turn) == ("a1", 2)


def test_the_rest_of_a_low_chunk_does_not_go_before_high_ones(bench: Bench) -> None:
    bench.enter("low", 20, Priority.LOW)
    assert bench.pop_and_claim("w", room=4).record_id == "low"
    bench.enter("high", 1, Priority.HIGH)
    assert [claim.record_id for claim in served(bench, room=8)] == ["high", "low", "low"]


def test_what_was_lost_or_put_back_goes_before_all(bench: Bench) -> None:
    bench.enter("low", 2, Priority.LOW)
    claim = bench.pop_and_claim("w")
    bench.enter("high", 1, Priority.HIGH)
    bench.ledger.put_back("low", claim.token)
    again = bench.pop_and_claim("w2", room=1)
    assert (again.record_id, again.priority, again.turn) == ("low", Priority.FRONT, 0)
    assert [claim.record_id for claim in served(bench)] == ["low", "high"]


def test_low_ones_get_a_turn_now_and_then_however_many_high_ones_there_are(bench: Bench) -> None:
    for number in range(3):
        bench.enter(f"low{number}", 1, Priority.LOW)
    for number in range(200):
        bench.enter(f"high{number}", 1, Priority.HIGH)
    claims = served(bench)
    bench.later(20)
    assert {next(claims).record_id[:4] for _ in range(50)} == {"high"}
    bench.sweep()
    assert next(claims).record_id.startswith("high")
    for number in range(3):
        bench.later(31)
        assert next(claims).record_id.startswith("high")
        bench.sweep()
        bench.sweep()
        assert [next(claims).record_id[:4] for _ in range(3)] == ["low" + str(number), "high", "high"]
    assert {claim.record_id[:4] for claim in claims} == {"high"}
    assert bench.pointers() == []


def test_low_ones_are_not_moved_while_nobody_is_served(bench: Bench) -> None:
    bench.enter("low", 1, Priority.LOW)
    bench.enter("high0", 1, Priority.HIGH)
    bench.enter("high1", 1, Priority.HIGH)
    claims = served(bench)
    assert next(claims).record_id == "high0"
    for _ in range(3):
        bench.later(31)
        assert bench.sweep() == []
    assert [claim.record_id for claim in claims] == ["high1", "low"]


def test_a_lane_that_was_just_filled_is_not_starved(bench: Bench) -> None:
    bench.enter("low0", 1, Priority.LOW)
    claims = served(bench)
    assert next(claims).record_id == "low0"
    bench.later(100)
    bench.enter("low1", 1, Priority.LOW)
    for number in range(2):
        bench.enter(f"high{number}", 1, Priority.HIGH)
    assert next(claims).record_id == "high0"
    bench.sweep()
    assert [claim.record_id for claim in claims] == ["high1", "low1"]


def test_another_models_lanes_are_no_measure(broker_url: str) -> None:
    bench, busy = Bench(broker_url), Bench(broker_url, queue="promptmill.busy")
    bench.enter("low", 1, Priority.LOW)
    bench.later(31)
    busy.enter("high", 1, Priority.HIGH)
    busy.pop_and_claim()
    bench.sweep()
    assert [lane for _, lane, *_ in bench.pointers()] == ["promptmill.m|9"]


def test_what_was_ended_has_no_turn_and_nothing_stays_of_turns_in_the_end(bench: Bench) -> None:
    for number in range(6):
        bench.enter(f"a{number}", 2, submitter="a")
        bench.enter(f"b{number}", 2, submitter="b")
    for number in range(3):
        bench.ledger.settle(f"b{number}", CANCELLED)
    bench.expire_record("a0")
    bench.sweep()
    names = [claim.record_id for claim in served(bench)]
    assert sorted(names) == ["a1", "a2", "a3", "a4", "a5", "b3", "b4", "b5"]
    assert names[:4] != ["a1", "a2", "a3", "a4"]
    bench.sweep()
    bench.sweep()
    left = {key.split(":")[0] for key in bench.keys()}  # noqa: SIM118
    assert left <= {"answers", "replies", "clock", "totals", "sweeper", "swept", "memory"}


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_who_gives_up_a_long_queue_does_not_wait_for_what_it_gave_up(bench: Bench, end: str) -> None:
    for number in range(50):
        bench.enter(f"a{number}", 10, submitter="a")
        bench.enter(f"b{number}", 10, submitter="b")
    bench.pop_and_claim("w", room=5)
    for number in range(50):
        if end == "cancelled":
            bench.ledger.settle(f"a{number}", CANCELLED)
        else:
            bench.expire_record(f"a{number}")
    bench.sweep()
    bench.enter("anew", 1, submitter="a")
    assert [claim.record_id for claim in served(bench)].index("anew") <= 1


def test_clients_are_submitters_of_their_own_unless_they_are_named(broker_url: str) -> None:
    with (
        Client(broker_url, model="m") as one,
        Client(broker_url, model="m") as other,
        Client(broker_url, model="m", submitter="app") as named,
        Client(broker_url, model="m", submitter="app") as namesake,
        client_of(broker_url) as broker,
    ):
        for client in (one, other, named, namesake):
            client.submit("a")
            client.submit("b")
        ends = dict(broker.zrange("promptmill:ends:promptmill.m|6", 0, -1, withscores=True))
        assert ends.pop(b"app") == 4
        assert sorted(ends.values()) == [2, 2]
        order = [Bench(broker_url).pop_and_claim(f"w{number}").turn for number in range(8)]
        assert order == sorted(order) == [0, 0, 0, 1, 1, 1, 2, 3]


def test_the_same_claim_again_has_the_same_turn_and_is_forgotten_with_the_claim(bench: Bench) -> None:
    bench.enter("a0", 8, submitter="a")
    bench.enter("b0", 8, submitter="b")
    assert bench.pop_and_claim("w0", room=3).turn == 0
    pointer = bench.pop()
    assert pointer is not None
    first, again = (bench.claim(pointer[0], "w1", 8, *pointer[1:3]) for _ in range(2))
    assert isinstance(first, Claim)
    assert _what(again) == _what(first)
    rest = bench.pop_and_claim("w2", room=2)
    assert (rest.record_id, rest.positions, rest.turn) == ("a0", (3, 4), 3)
    assert _what(bench.claim(rest.record_id, "w2", 2)) == _what(rest)
    for claim in (first, rest):
        bench.finish_all(claim)
    assert "granted" not in bench.keys()  # noqa: SIM118


def test_who_has_ended_takes_no_turn_from_others(bench: Bench) -> None:
    for number in range(20):
        bench.enter(f"a{number}", 1, submitter="a")
        bench.enter(f"b{number}", 1, submitter="b")
    for number in range(10):
        bench.expire_record(f"a{number}")  # and no sweep comes
    bench.redis.delete(bench.names.record("b0"), bench.names.record("b1"))  # evicted
    order = [claim.record_id for claim in served(bench)]
    assert sorted(order) == sorted([f"a{number}" for number in range(10, 20)] + [f"b{n}" for n in range(2, 20)])
    assert [line for _ in range(3) for line in bench.sweep() if line.startswith("pointer")] == []


def test_a_pointer_that_nobody_waits_for_is_no_turn(bench: Bench) -> None:
    bench.enter("a0", 9, submitter="a")
    stale = bench.pop()
    assert stale is not None
    assert isinstance(bench.claim(stale[0], "w", 1, *stale[1:3]), Claim)
    bench.enter("b0", 1, submitter="b")
    assert bench.claim(stale[0], "w2", 1, *stale[1:3]) == "gone"
    assert [claim.record_id for claim in served(bench)] == ["b0", "a0"]


def test_a_record_of_an_older_version_is_served_when_its_pointer_comes(bench: Bench) -> None:
    for number in range(5):
        bench.enter(f"a{number}", 1, submitter="a")
    bench.enter("old", 1, submitter="b")
    bench.redis.hdel(bench.names.record("old"), "turn", "submitter")
    bench.redis.zrem(f"{bench.names.prefix}turns:promptmill.m|6", "old")
    for number in range(5, 9):
        bench.enter(f"a{number}", 1, submitter="a")
    assert [claim.record_id for claim in served(bench)].index("old") == 5


def test_ever_new_submitters_can_not_keep_those_who_wait_from_their_turn(bench: Bench) -> None:
    for number in range(4):
        bench.enter(f"bulk{number}", 1, submitter="bulk")
    claims, order = served(bench), []
    for number in range(400):  # never less than three wait
        bench.enter(f"new{number}", 1, submitter=f"new{number}")
        order.append(next(claims).record_id)
    assert [name for name in order if name.startswith("bulk")] == [f"bulk{number}" for number in range(4)]
    assert bench.redis.zcard(f"{bench.names.prefix}ends:promptmill.m|6") < 100


def test_a_record_that_waits_to_run_alone_keeps_no_turns_from_others(bench: Bench) -> None:
    """With --max-deliveries 1 every prompt is at its last."""
    for number in range(4):
        bench.enter(f"a{number}", 1, submitter="a")
    order = []
    for number in range(4):
        pointer = bench.pop()
        assert pointer is not None
        claim = bench.ledger.claim(pointer[0], f"{pointer[0]}/w{number}", 64, 60.0, 1, *pointer[1:3])
        order.append(claim if isinstance(claim, str) else claim.record_id)
    assert order == ["a0", "leased", "leased", "leased"]
    bench.ledger.start("a0", "a0/w0")
    bench.sweep()
    assert bench.sweep() == ["pointer a1", "pointer a2", "pointer a3"]


def test_plain_calls_are_served_by_their_own_messages_only(bench: Bench) -> None:
    bench.enter_plain_call("call")
    bench.enter("lost", 1, submitter="a")
    bench.expire_lease(bench.pop_and_claim("w"))
    bench.sweep()
    pointer = bench.pop()
    assert pointer is not None
    assert pointer[:2] == ("lost", "promptmill.m:again|0")
    claim = bench.claim(pointer[0], "w2", 64, *pointer[1:3])
    assert isinstance(claim, Claim)
    assert claim.record_id == "lost"
    assert bench.claimed("call", "w3").record_id == "call"


def _what(claim: Claim | str) -> tuple[object, ...]:
    assert isinstance(claim, Claim)
    return claim.record_id, claim.token, claim.positions, claim.attempts, claim.priority, claim.turn
