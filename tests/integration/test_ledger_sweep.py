"""The ledger's sweep on real brokers: lost leases, lost pointers, deadlines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger import Bench
from workers import a_worker, wait_until

from promptmill.errors import TaskExpiredError
from promptmill.ledger.calls import SWEEP_LIMIT
from promptmill.names import Priority
from promptmill.protocol import answer_from_wire


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def lose_pointer(bench: Bench, list_name: str | None = None) -> None:
    """As when the broker pops a message into a dead connection."""
    if list_name is None:
        assert bench.pop() is not None
    else:
        assert bench.redis.rpop(list_name) is not None


def test_one_sweeper_at_a_time(bench: Bench) -> None:
    bench.enter("r")
    bench.expire_lease(bench.claimed("r"))
    assert bench.ledger.sweep("first", 60.0, 0.0) == ["lease r"]
    bench.expire_lease(bench.claimed("r", "b"))
    assert bench.ledger.sweep("second", 60.0, 0.0) == []
    assert 0 < bench.redis.pttl(f"{bench.names.prefix}sweeper") <= 60_000


# Lost leases.


def test_an_expired_lease_is_queued_again_at_the_front_and_an_attempt_counted(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.enter("other", 1, Priority.HIGH)
    claim = bench.claimed("r")
    bench.finish(claim, {1: b"{}"})
    bench.expire_lease(claim)
    assert bench.sweep() == ["lease r"]
    again = bench.pop_and_claim("b")
    assert (again.record_id, again.positions, again.attempts) == ("r", (0, 2), (2, 2))


def test_attempts_are_counted_for_each_prompt(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.expire_lease(bench.claimed("r", "a", room=1))
    bench.sweep()
    bench.expire_lease(bench.claimed("r", "b", room=1))  # position 1: position 0 stands behind it now
    bench.sweep()
    bench.expire_lease(bench.claimed("r", "c", room=2))  # 2 and 0
    bench.sweep()
    beside, alone = bench.claimed("r", "d"), bench.claimed("r", "e")
    assert dict(zip(beside.positions, beside.attempts, strict=True)) == {1: 2, 2: 2}
    assert dict(zip(alone.positions, alone.attempts, strict=True)) == {0: 3}


def test_a_living_lease_is_left_alone(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.pop_and_claim()
    for _ in range(3):
        assert bench.ledger.renew([claim.token], 60.0) == []
        assert bench.sweep() == []
    assert bench.pointers() == []


def test_a_record_that_lost_several_claims_is_queued_once(bench: Bench) -> None:
    bench.enter("r", 5)
    for name in "abc":
        bench.expire_lease(bench.claimed("r", name, room=1))
    while bench.pop():
        pass
    assert bench.sweep() == ["lease r"]
    assert [count for *_, count in bench.pointers()] == [5]


def test_a_workers_log_sums_up_what_it_has_swept(broker_url: str, tmp_path: Path) -> None:
    bench = Bench(broker_url, queue="promptmill.nobody")
    for number in range(20):
        bench.enter(f"r{number:02}")
        bench.expire_record(f"r{number:02}")
    with a_worker(broker_url, tmp_path / "log", "--sweep-s", "0.2") as worker:
        wait_until(lambda: not list(bench.redis.scan_iter("promptmill:record:*")), "all are ended")
    assert "swept: deadline r00, r01, r02, r03, r04 and 15 more" in worker.log
    assert worker.log.count("swept") == 1
    bench.redis.close()


def test_a_worker_whose_lease_was_swept_hears_of_it(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.claimed("r")
    bench.expire_lease(claim)
    bench.sweep()
    assert bench.ledger.renew([claim.token], 60.0) == [claim.token]


def test_after_an_outage_living_workers_may_renew_before_their_work_is_given_away(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.pop_and_claim()
    bench.sweep()
    bench.expire_lease(claim)
    bench.redis.set(f"{bench.names.prefix}swept", 1)  # the broker was away for longer than the lease
    assert bench.sweep(grace_s=30.0) == []
    assert bench.ledger.renew([claim.token], 60.0) == []
    assert bench.sweep(grace_s=30.0) == []
    bench.expire_lease(claim)
    assert bench.sweep(grace_s=30.0) == ["lease r"]


def test_a_sweeper_that_comes_every_few_seconds_finds_a_dead_worker_too(bench: Bench) -> None:
    """As a client does where no worker is left: each of its sweeps follows a gap."""
    bench.enter("r")
    claim = bench.pop_and_claim()
    bench.sweep()
    bench.expire_lease(claim)
    bench.redis.set(f"{bench.names.prefix}swept", 1)
    assert bench.sweep(grace_s=0.2) == []
    time.sleep(0.5)  # more than the grace: a gap again
    bench.redis.delete(f"{bench.names.prefix}sweeper")
    assert bench.ledger.sweep("client", interval_s=0.1, grace_s=0.2) == ["lease r"]


def test_a_dead_workers_prompts_are_found_however_seldom_one_sweeps(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.pop_and_claim()
    bench.sweep()
    bench.expire_lease(claim)
    bench.redis.set(f"{bench.names.prefix}swept", bench.redis.get(f"{bench.names.prefix}clock").decode()[:-8] + "0" * 8)
    bench.redis.delete(f"{bench.names.prefix}sweeper")
    assert bench.ledger.sweep("seldom", interval_s=200.0, grace_s=3.0) == ["lease r"]


# Lost pointers.


@pytest.mark.parametrize("priority", [Priority.HIGH, Priority.NORMAL, Priority.LOW])
def test_the_only_pointer_of_a_lane_is_missed_after_the_grace(bench: Bench, priority: Priority) -> None:
    bench.enter("r", 1, priority)
    lose_pointer(bench)
    assert bench.sweep() == []
    assert bench.sweep(grace_s=60.0) == []
    assert bench.sweep() == ["pointer r"]
    assert bench.pop_and_claim().record_id == "r"


def test_a_pointer_lost_among_others_is_missed_once_a_later_one_is_popped(bench: Bench) -> None:
    for number in range(9):
        bench.enter(f"r{number}")
    lose_pointer(bench)
    assert [line for _ in range(3) for line in bench.sweep()] == []
    assert bench.pop_and_claim().record_id == "r0"  # whose turn it is, whichever pointer gives it
    assert [line for _ in range(3) for line in bench.sweep()] == ["pointer r1"]


def test_a_purged_queue_comes_back(bench: Bench) -> None:
    for number in range(9):
        bench.enter(f"r{number}", 1, [3, 6, 9][number % 3])
    bench.redis.delete(*bench.lists())
    bench.sweep()
    assert sorted(bench.sweep()) == [f"pointer r{number}" for number in range(9)]
    assert {bench.pop_and_claim().record_id for _ in range(9)} == {f"r{number}" for number in range(9)}


def test_as_many_as_were_lost_are_missed_with_several_priorities_and_submitters(bench: Bench) -> None:
    for number in range(300):
        bench.enter(f"r{number}", 1, [3, 6, 9][number % 3], submitter="abcd"[number % 4])
    for name in bench.lists()[2:]:
        for place in (5, 20, 31):
            bench.redis.lrem(name, 1, bench.redis.lindex(name, -1 - place))
    assert len(bench.pointers()) == 291
    missed, claimed = [], []
    # Higher priorities are worked off first; the others wait long behind them, and that is no loss.
    while pointer := bench.pop():
        claimed.append(bench.claim(pointer[0], f"a{len(claimed)}", 64, *pointer[1:3]).record_id)
        missed += bench.sweep()
    assert len(set(missed)) == len(missed) == 9
    assert sorted(claimed) == sorted(f"r{number}" for number in range(300))


def test_waiting_is_no_loss_whoever_goes_first(bench: Bench) -> None:
    for number in range(20):
        bench.enter(f"low{number}", 1, Priority.LOW)
    for number in range(20):
        bench.enter(f"high{number}", 4, Priority.HIGH)
        bench.pop_and_claim(str(number), room=2)
        assert bench.sweep() == []


def test_a_pointer_published_twice_or_late_is_no_harm(bench: Bench) -> None:
    bench.enter("r", 3)
    stale = bench.redis.lindex(bench.lists()[3], 0)
    bench.pop_and_claim("a", room=1)
    bench.redis.rpush(bench.lists()[3], stale, stale)
    claims = []
    while pointer := bench.pop():
        claims.append(bench.claim(pointer[0], f"b{len(claims)}", 1, *pointer[1:3]))
    assert [getattr(claim, "positions", claim) for claim in claims] == ["gone", "gone", (1,), (2,)]
    assert [line for _ in range(3) for line in bench.sweep()] == []


def test_what_is_left_of_a_chunk_is_missed_too(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.pop_and_claim("a", room=1)
    lose_pointer(bench)
    bench.sweep()
    assert bench.sweep() == ["pointer r"]
    assert bench.pop_and_claim("b", room=1).positions == (1,)
    lose_pointer(bench, f"{bench.queue}:again")
    bench.sweep()
    assert bench.sweep() == ["pointer r"]
    assert bench.pop_and_claim("c").positions == (2,)


def test_a_plain_call_whose_worker_died_before_it_claimed_is_queued_again(bench: Bench) -> None:
    bench.enter_plain_call("call")
    bench.sweep()
    assert bench.sweep() == ["pointer call"]
    assert bench.pop_and_claim().record_id == "call"


def test_a_lane_entry_without_its_record_goes(bench: Bench) -> None:
    bench.enter("r")
    bench.redis.delete(bench.names.record("r"))
    lose_pointer(bench)
    bench.sweep()
    assert bench.sweep() == []
    assert bench.keys() <= {"clock", "totals", "sweeper", "swept", "memory", "deadlines", "prompts"}


# Deadlines.


def test_a_deadline_ends_what_waits_and_leaves_what_runs_to_its_worker(bench: Bench) -> None:
    bench.enter("r", 3)
    claim = bench.pop_and_claim(room=2)
    bench.finish(claim, {0: b"{}"})
    bench.expire_record("r")
    assert bench.sweep() == ["deadline r"]
    assert bench.sweep() == []
    assert bench.ledger.renew([claim.token], 60.0) == []
    assert bench.claim("r") == "gone"
    assert bench.finish(claim, {1: b'"with its partial text"'}, error=True, last=True) == ()
    answers = bench.answers("r")
    assert (answers[0], answers[1]) == (b"{}", b'"with its partial text"')
    assert isinstance(answer_from_wire(answers[2]), TaskExpiredError)
    assert len(bench.stream()) == 3
    while bench.pop():
        pass
    bench.sweep()
    assert bench.keys() <= {"answers:r", "replies:client", "clock", "totals", "sweeper", "swept", "memory"}


def test_a_deadline_ends_what_a_dead_worker_held(bench: Bench) -> None:
    bench.enter("r")
    bench.expire_lease(bench.pop_and_claim())
    bench.expire_record("r")
    assert (bench.sweep(), bench.sweep()) == (["lease r"], ["deadline r"])
    assert isinstance(answer_from_wire(bench.answers("r")[0]), TaskExpiredError)


def test_a_plain_calls_deadline_is_told_to_celery_by_a_worker(bench: Bench) -> None:
    bench.enter_plain_call("call")
    bench.expire_lease(bench.claimed("call", "a"))
    bench.expire_record("call")
    assert (bench.sweep(), bench.sweep()) == (["lease call"], ["deadline call"])
    bench.pop()
    again = bench.pop_and_claim("b")
    assert again.answer is not None
    assert isinstance(answer_from_wire(again.answer), TaskExpiredError)


def test_a_plain_call_whose_answer_nobody_fetches_ends_too(bench: Bench) -> None:
    bench.enter_plain_call("call")
    for _ in range(2):
        bench.expire_record("call")
        bench.sweep()
    assert bench.open("call") is None
    assert bench.redis.ttl(bench.names.answers("call")) > 0


# Cost.


def test_a_sweep_moves_a_bounded_number_and_the_next_goes_on(bench: Bench) -> None:
    for number in range(SWEEP_LIMIT + 200):
        bench.enter(f"r{number}")
    bench.redis.delete(*bench.lists())
    bench.sweep()
    assert [len(bench.sweep()) for _ in range(3)] == [SWEEP_LIMIT, 200, 0]


def test_a_sweep_costs_what_was_lost_not_what_is_queued(bench: Bench) -> None:
    def commands_of_a_sweep() -> int:
        bench.redis.config_resetstat()
        bench.sweep()
        return sum(command["calls"] for command in bench.redis.info("commandstats").values())

    bench.enter("r")
    bench.sweep()
    few = commands_of_a_sweep()
    for number in range(2_000):
        bench.enter(f"r{number}")
    assert commands_of_a_sweep() == few
