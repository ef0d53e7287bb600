"""The ledger's rules, each on real brokers: finishing, putting back, settling, and plain Celery calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_ledger import CANCELLED, Bench

from promptmill.ledger import Entry

#: What is known of lanes, until the next sweep finds that they are empty.
OF_LANES = {"clock", "totals", "lanes", "watermarks", "served", "lane_time", "ends:promptmill.m|6"}


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


# Finishing.


def test_the_first_answer_stays_and_is_told_once(bench: Bench) -> None:
    bench.enter("r", 2)
    claim = bench.claimed("r")
    bench.finish(claim, {0: b"first"})
    bench.finish(claim, {0: b"second"})
    assert bench.answers("r") == {0: b"first"}
    assert bench.stream() == [("r", 0, b"first")]


def test_an_answer_is_taken_from_who_has_lost_the_lease_but_not_an_error(bench: Bench) -> None:
    bench.enter("r", 2)
    sleeper = bench.claimed("r", "sleeper")
    bench.expire_lease(sleeper)
    bench.sweep()
    bench.finish(sleeper, {0: b"error"}, error=True)
    assert bench.answers("r") == {}
    bench.finish(sleeper, {0: b"answer"})
    assert bench.answers("r") == {0: b"answer"}
    assert bench.claimed("r", "other").positions == (1,)


def test_an_error_is_taken_from_the_holder_of_the_lease(bench: Bench) -> None:
    bench.enter("r")
    bench.finish(bench.claimed("r"), {0: b"error"}, error=True)
    assert bench.stream() == [("r", 0, b"error")]


def test_the_last_answer_of_a_chunk_ends_its_record_and_begins_the_answers_time(bench: Bench) -> None:
    bench.enter("r", 2, result_ttl_s=100)
    bench.finish_all(bench.claimed("r", "a", room=1))
    # An answer of a chunk that isn't complete must not expire: nobody would compute it again.
    assert bench.redis.ttl(bench.names.answers("r")) == -1
    bench.finish_all(bench.claimed("r", "b"))
    assert 0 < bench.redis.ttl(bench.names.answers("r")) <= 100
    assert bench.open("r") is None
    assert bench.ledger.renew(["r/a", "r/b"], 60.0) == ["r/a", "r/b"]
    assert bench.keys() <= {"answers:r", "replies:client", "memory", *OF_LANES}


def test_a_stream_that_nobody_reads_keeps_no_old_answers(bench: Bench) -> None:
    for number in range(500):
        bench.redis.xadd(bench.stream_key, {"record": "old", "0": "{}"}, id=f"{number + 1}-0")
    bench.enter("r", 2)
    bench.finish_all(bench.claimed("r", "a", room=1))
    bench.finish_all(bench.claimed("r", "b"))
    assert [record for record, _, _ in bench.stream()[-2:]] == ["r", "r"]
    assert bench.redis.xlen(bench.stream_key) <= 102  # whole nodes of a hundred go at once


def test_the_last_finish_names_what_the_broker_misses(bench: Bench) -> None:
    bench.enter("r", 3)
    claim = bench.claimed("r", room=2)
    bench.finish(claim, {0: b"{}"})
    bench.redis.hdel(bench.names.answers("r"), "0")  # a power loss took the last second of writes
    assert bench.finish(claim, {1: b"{}"}, last=True) == (0,)
    assert bench.finish(claim, {0: b"{}"}, last=True) == ()
    assert bench.answers("r") == {0: b"{}", 1: b"{}"}
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]


def test_an_answer_to_a_record_that_is_gone_is_dropped(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.claimed("r")
    bench.finish_all(claim)
    bench.ledger.forget(["r"])
    assert bench.finish(claim, {0: b"late"}, last=True) == ()
    assert bench.answers("r") == {}
    assert len(bench.stream()) == 1


@pytest.mark.parametrize("count", [4_001, 20_000])
def test_a_chunk_may_be_larger_than_what_lua_unpacks(bench: Bench, count: int) -> None:
    for record_id in ("finished", "settled", "expired"):
        bench.enter(record_id, count)
    claim = bench.claimed("finished", room=count)
    assert len(claim.positions) == count
    bench.finish_all(claim)
    assert bench.ledger.settle("settled", CANCELLED) == count
    bench.expire_record("expired")
    assert bench.sweep() == ["deadline expired"]
    assert len(bench.stream()) == 3 * count
    assert [bench.open(record_id) for record_id in ("finished", "settled", "expired")] == [None, None, None]


# Putting back.


def test_what_is_put_back_is_queued_at_the_front_and_no_attempt_is_counted(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.enter("other")
    claim = bench.pop_and_claim()
    bench.finish(claim, {1: b"{}"})
    assert bench.ledger.put_back("r", claim.token) == 2
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]
    again = bench.pop_and_claim("b")
    assert (again.record_id, again.positions, again.attempts) == ("r", (0, 2), (1, 1))


def test_a_claim_can_be_put_back_once(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.pop_and_claim()
    assert [bench.ledger.put_back("r", claim.token) for _ in range(2)] == [1, 0]
    assert len(bench.pointers()) == 1


# Settling.


def test_settling_answers_what_is_left_and_ends_the_record(bench: Bench) -> None:
    bench.enter("r", 3)
    claim = bench.claimed("r", room=1)
    bench.finish(claim, {0: b"{}"})
    assert bench.ledger.settle("r", CANCELLED) == 2
    assert bench.answers("r") == {0: b"{}", 1: CANCELLED, 2: CANCELLED}
    assert bench.open("r") is None
    assert len(bench.stream()) == 3
    assert bench.ledger.settle("r", CANCELLED) == 0


def test_settling_positions_that_the_chunk_does_not_have_answers_nobody(bench: Bench) -> None:
    bench.enter("r", 2)
    assert bench.ledger.settle("r", CANCELLED, [2, 7]) == 0
    bench.finish_all(bench.claimed("r", "a", room=1))
    assert bench.claimed("r", "b").positions == (1,)


def test_settling_a_held_chunk_takes_its_leases(bench: Bench) -> None:
    bench.enter("r", 2)
    claim = bench.claimed("r")
    bench.ledger.settle("r", CANCELLED)
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]


# Plain Celery calls.


def test_a_plain_call_is_entered_without_a_pointer_and_stays_until_celery_has_its_result(bench: Bench) -> None:
    assert bench.enter_plain_call("call") == "entered"
    assert bench.messages() == []
    claim = bench.claimed("call")
    bench.finish_all(claim)
    assert bench.ledger.renew([claim.token], 60.0) == []
    bench.ledger.drop("call")
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]
    assert {"answers:call", "clock"} <= bench.keys() <= {"answers:call", *OF_LANES}
    assert bench.enter_plain_call("call") == "answered"


def test_a_plain_call_queued_again_is_its_own_message_with_a_new_delivery_tag(bench: Bench) -> None:
    bench.enter_plain_call("call")
    bench.ledger.put_back("call", bench.claimed("call", "a").token)
    bench.ledger.put_back("call", bench.claimed("call", "b").token)
    first, second = bench.messages()
    assert first["call"] == second["call"] == "call"
    assert first["tag"] != second["tag"]


def test_a_plain_call_answered_but_not_stored_is_claimed_again_with_its_answer(bench: Bench) -> None:
    bench.enter_plain_call("call")
    claim = bench.claimed("call", "killed")
    bench.finish(claim, {0: b"answer"}, last=True)
    assert bench.claim("call", "b") == "leased"
    bench.expire_lease(claim)
    assert bench.sweep() == ["lease call"]
    again = bench.pop_and_claim("b")
    assert (again.answer, again.attempts) == (b"answer", (1,))


def test_a_plain_call_that_is_cancelled_is_queued_once_more_so_that_celery_hears_of_it(bench: Bench) -> None:
    bench.enter_plain_call("call")
    held = bench.claimed("call", "a")
    assert bench.ledger.settle("call", CANCELLED) == 1
    assert bench.ledger.renew([held.token], 60.0) == [held.token]
    assert bench.pop_and_claim("b").answer == CANCELLED
    assert bench.ledger.settle("call", CANCELLED) == 0
    assert bench.messages() == []


def test_a_plain_calls_id_may_hold_any_character(bench: Bench) -> None:
    bench.ledger.enter([Entry('we"ird\\', "promptmill.m|0", b"[]", 1, message_halves=('{"call": "x", "tag": "', '"}'))])
    bench.ledger.put_back('we"ird\\', bench.claimed('we"ird\\').token)
    assert len(bench.messages()) == 1
