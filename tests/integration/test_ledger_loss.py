"""Prompts whose workers are lost: counting, running alone, convicting, and never an innocent one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_ledger import Bench

from promptmill.errors import TooManyDeliveriesError
from promptmill.ledger import Claim, Entry
from promptmill.protocol import answer_from_wire


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def claim_as(bench: Bench, worker: str, record_id: str = "r", room: int = 64) -> Claim:
    claim = bench.claim(record_id, f"1.{worker}", room)
    assert isinstance(claim, Claim)
    return claim


def die_with(bench: Bench, *claims: Claim) -> None:
    for claim in claims:
        bench.expire_lease(claim)
    bench.sweep()


def die_twice(bench: Bench, record_id: str = "r") -> None:
    for worker in ("run1@one", "run2@two"):
        die_with(bench, claim_as(bench, worker, record_id))


def letters(bench: Bench) -> list[dict[str, str]]:
    entries = bench.redis.xrange(bench.names.dead_letters)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


def test_the_first_retry_runs_as_usual_and_the_last_alone(bench: Bench) -> None:
    bench.enter("r", 3)
    first = claim_as(bench, "run1@one")
    die_with(bench, first)
    second = claim_as(bench, "run2@two")
    assert (first.alone, second.alone, second.attempts) == (False, False, (2, 2, 2))
    die_with(bench, second)
    third = claim_as(bench, "run3@three")
    assert (third.alone, third.positions, third.attempts) == (True, (0,), (3,))
    assert bench.open("r") == {1, 2}


def test_what_is_no_suspect_goes_first_and_beside_others(bench: Bench) -> None:
    bench.enter("r", 3)
    for worker in ("run1@one", "run2@two"):
        die_with(bench, claim_as(bench, worker, room=1), claim_as(bench, f"{worker}-", room=1))
    # Position 2 was never lost with the others both times.
    assert bench.open("r") == {0, 1, 2}
    claim = claim_as(bench, "run3@three")
    assert (claim.alone, len(claim.positions)) == (False, 2)


def test_a_prompt_whose_worker_dies_while_it_is_alone_is_answered_with_an_error_and_kept(bench: Bench) -> None:
    requests = b'{"prompt": "innocent"}\n{"prompt": "p\\u00f6ison"}'
    bench.ledger.enter([Entry("r", "promptmill.m|9", requests, 2, reply=bench.stream_key, timeout_s=60)])
    die_twice(bench)
    bench.finish(claim_as(bench, "run3@three"), {0: b"{}"}, last=True)
    alone = claim_as(bench, "run4@four")
    assert bench.ledger.start("r", alone.token)
    die_with(bench, alone)
    error = answer_from_wire(bench.answers("r")[1])
    assert isinstance(error, TooManyDeliveriesError)
    assert error.attempts == 3
    assert "p\u00f6ison" not in str(error)
    assert "promptmill dead-letter show r:1" in str(error)
    assert bench.open("r") is None
    [letter] = letters(bench)
    history: list[dict[str, Any]] = json.loads(letter.pop("history"))
    assert [(death["worker"], death["alone"], death["why"]) for death in history] == [
        ("one", False, "its lease expired"),
        ("two", False, "its lease expired"),
        ("four", True, "its lease expired"),
    ]
    assert history[0]["at"] < history[2]["at"]
    assert letter.pop("reason") == str(error)
    assert letter == {
        "task": "r:1",
        "queue": "promptmill.m",
        "priority": "0",
        "version": "1",
        "request": '{"prompt": "p\\u00f6ison"}',
        "timeout_ms": "60000",
        "ttl": "86400",
    }


def test_a_prompt_that_waits_for_its_worker_to_be_empty_is_not_counted(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    for number in range(5):
        waiting = claim_as(bench, f"run{number}@w")
        assert (waiting.alone, waiting.attempts) == (True, (3,))
        die_with(bench, waiting)
    assert not letters(bench)


def test_a_claim_granted_again_still_says_that_it_is_alone(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    assert claim_as(bench, "run3@three").alone
    assert claim_as(bench, "run3@three").alone


def test_a_lost_claim_can_not_start(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    claim = claim_as(bench, "run3@three")
    die_with(bench, claim)
    assert not bench.ledger.start("r", claim.token)


def test_putting_back_never_counts(bench: Bench) -> None:
    bench.enter("r", 2)
    for number in range(5):
        claim = claim_as(bench, f"run{number}@w")
        assert claim.attempts == (1, 1)
        bench.ledger.put_back("r", claim.token)


def test_where_workers_die_anyway_one_death_alone_convicts_nobody(bench: Bench) -> None:
    bench.enter("other")
    die_with(bench, claim_as(bench, "run0@elsewhere", "other"))
    bench.enter("r", 1)
    die_twice(bench)
    for number in range(3):
        assert not letters(bench)
        alone = claim_as(bench, f"run{3 + number}@w")
        assert alone.attempts == (3 + number,)
        bench.ledger.start("r", alone.token)
        die_with(bench, alone)
    assert isinstance(answer_from_wire(bench.answers("r")[0]), TooManyDeliveriesError)


def test_of_two_workers_that_die_together_neither_convicts(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    alone = claim_as(bench, "run3@three")
    bench.ledger.start("r", alone.token)
    bench.enter("other")
    die_with(bench, alone, claim_as(bench, "run4@four", "other"))
    assert not letters(bench)


def test_a_worker_that_was_only_cut_off_takes_its_death_back(bench: Bench) -> None:
    bench.enter("r", 2)
    cut_off = claim_as(bench, "run1@one")
    die_with(bench, cut_off)
    assert bench.ledger.renew([cut_off.token], 60.0) == [cut_off.token]
    assert claim_as(bench, "run2@two").attempts == (1, 1)
    assert bench.redis.zcard(f"{bench.names.prefix}deaths") == 0


def test_an_engine_that_dies_is_a_lost_delivery_at_once(bench: Bench) -> None:
    bench.enter("r", 2)
    claim = bench.pop_and_claim("1.run1@one")
    bench.finish(claim, {0: b"{}"})
    bench.ledger.lose("r", claim.token, "the engine died")
    again = bench.pop_and_claim("1.run2@two")
    assert (again.positions, again.attempts) == ((1,), (2,))
    bench.ledger.lose("r", again.token, "the engine died")
    alone = bench.pop_and_claim("1.run3@three")
    bench.ledger.start("r", alone.token)
    bench.ledger.lose("r", alone.token, "the engine died")
    assert isinstance(answer_from_wire(bench.answers("r")[1]), TooManyDeliveriesError)
    assert json.loads(letters(bench)[0]["history"])[2]["why"] == "the engine died"
    assert bench.pop() is None


def test_a_plain_call_that_kills_its_workers_is_handed_to_celery_and_kept(bench: Bench) -> None:
    bench.enter_plain_call("call")
    die_twice(bench, "call")
    alone = claim_as(bench, "run3@three", "call")
    bench.ledger.start("call", alone.token)
    die_with(bench, alone)
    while (pointer := bench.pop()) is not None:
        record_id = pointer[0]
    last = claim_as(bench, "run4@four", record_id)
    assert last.answer is not None
    assert not last.alone
    assert isinstance(answer_from_wire(last.answer), TooManyDeliveriesError)
    assert letters(bench)[0]["task"] == "call"


def test_a_prompt_with_a_result_is_never_convicted(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    alone = claim_as(bench, "run3@three")
    bench.ledger.start("r", alone.token)
    bench.finish(alone, {0: b"{}"})
    die_with(bench, alone)
    assert not letters(bench)
    assert bench.answers("r") == {0: b"{}"}


def test_only_the_newest_thousand_dead_letters_are_kept(bench: Bench) -> None:
    for number in range(1100):
        bench.redis.xadd(bench.names.dead_letters, {"task": f"old{number}"})
    bench.enter("r", 1)
    die_twice(bench)
    alone = claim_as(bench, "run3@three")
    bench.ledger.start("r", alone.token)
    die_with(bench, alone)
    assert bench.redis.xlen(bench.names.dead_letters) == 1000
    assert letters(bench)[-1]["task"] == "r"


def test_only_one_worker_of_a_model_waits_until_it_is_empty(bench: Bench) -> None:
    bench.enter("r", 2)
    die_twice(bench)
    waiting = claim_as(bench, "run3@three")
    assert bench.claim("r", "1.run4@four") == "leased"
    assert bench.open("r") == {1}
    assert bench.ledger.start("r", waiting.token)
    assert claim_as(bench, "run4@four").positions == (1,)


def test_the_turn_of_a_worker_that_died_waiting_is_over(bench: Bench) -> None:
    bench.enter("r", 1)
    die_twice(bench)
    die_with(bench, claim_as(bench, "run3@three"))
    assert claim_as(bench, "run4@four").alone


def test_an_engines_death_is_not_taken_back_by_a_beat_that_comes_after_it(bench: Bench) -> None:
    bench.enter("r", 1)
    claim = claim_as(bench, "run1@one")
    bench.ledger.lose("r", claim.token, "the engine died")
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]
    assert claim_as(bench, "run2@two").attempts == (2,)
    assert bench.redis.zcard(f"{bench.names.prefix}deaths") == 1


def test_what_was_not_in_the_engine_that_died_goes_back_without_counting(bench: Bench) -> None:
    bench.enter("r", 4)
    claim = claim_as(bench, "run1@one")
    bench.ledger.lose("r", claim.token, "the engine died", [1, 3])
    assert bench.open("r") == {0, 1, 2, 3}
    again = claim_as(bench, "run2@two")
    assert dict(zip(again.positions, again.attempts, strict=True)) == {0: 2, 1: 1, 2: 2, 3: 1}
