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
    for number in range(300):
        bench.enter(f"a{number}", 3, submitter="a")
    for number in range(100):
        bench.enter(f"b{number}", 1, submitter="b")
        bench.enter(f"c{number}", 5, submitter="c")
    claimed: Counter[str] = Counter()
    for number, claim in enumerate(served(bench, room=2)):
        claimed[claim.record_id] += len(claim.positions)
        if number % 7 == 0:
            assert bench.sweep() == []
    assert len(claimed) == 500
    assert sum(claimed.values()) == 300 * 3 + 100 * 6


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
    assert {next(claims).record_id[:4] for _ in range(50)} == {"high"}
    bench.sweep()
    assert next(claims).record_id.startswith("high")
    for number in range(3):
        _served_long_ago(bench, "promptmill.m|9", seconds=31)
        assert bench.sweep() == bench.sweep() == []
        assert next(claims).record_id == f"low{number}"
    assert {claim.record_id[:4] for claim in claims} == {"high"}
    assert len(bench.pointers()) == 0


def test_a_lane_that_waits_as_all_do_is_not_starved(bench: Bench) -> None:
    bench.enter("low", 1, Priority.LOW)
    bench.enter("high", 1, Priority.HIGH)
    for lane in ("promptmill.m|9", "promptmill.m|3"):
        _served_long_ago(bench, lane, seconds=31)
    bench.sweep()
    assert [claim.record_id for claim in served(bench)] == ["high", "low"]


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
    assert left <= {"answers", "granted", "replies", "clock", "sweeper", "swept", "memory"}


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


def _served_long_ago(bench: Bench, lane: str, seconds: int) -> None:
    served = f"{bench.names.prefix}served"
    at = int(bench.redis.hget(served, lane))
    bench.redis.hset(served, lane, at - seconds * 1_000_000)
