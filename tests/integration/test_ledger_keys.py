"""Idempotency keys in the ledger: written with their records, held while those wait, run or succeeded, then free."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from test_ledger import CANCELLED, Bench

from promptmill.errors import EngineError
from promptmill.protocol import GenerationResult, answer_to_wire

RESULT = answer_to_wire(GenerationResult(model='{"error":'))


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def enter(bench: Bench, record_id: str, digest: str = "d", **fields: object) -> str:
    return bench.enter(record_id, key="k", digest=digest, **fields)


def answer(bench: Bench, record_id: str, wire: bytes, error: bool = False) -> None:
    bench.finish(bench.claimed(record_id), {0: wire}, error, last=True)


def holder(bench: Bench) -> str | None:
    found = bench.redis.hget(bench.names.key("k"), "record")
    return found.decode() if found else None


def test_a_key_is_held_while_its_record_waits_runs_and_when_it_has_succeeded(bench: Bench) -> None:
    assert enter(bench, "r") == "entered"
    for step in (lambda: None, lambda: bench.claimed("r"), lambda: answer(bench, "r", RESULT)):
        step()
        before = bench.keys(), bench.pointers()
        assert enter(bench, "s") == "same r"
        assert enter(bench, "t", "another") == "conflict"
        assert (bench.keys(), bench.pointers()) == before
        if bench.open("r") == frozenset():
            bench.ledger.put_back("r", "r/a")


def test_another_key_and_none_are_of_no_concern(bench: Bench) -> None:
    assert enter(bench, "r") == "entered"
    assert bench.enter("s", key="other", digest="d") == "entered"
    assert [bench.enter("t"), bench.enter("u")] == ["entered", "entered"]
    assert {key for key in bench.keys() if key.startswith("key:")} == {"key:k", "key:other"}  # noqa: SIM118


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda bench: answer(bench, "r", answer_to_wire(EngineError("broken")), error=True), id="failed"),
        pytest.param(lambda bench: bench.ledger.settle("r", CANCELLED), id="cancelled"),
        pytest.param(lambda bench: bench.expire_record("r"), id="overdue"),
        pytest.param(lambda bench: (bench.expire_record("r"), bench.sweep()), id="expired"),
        pytest.param(lambda bench: (answer(bench, "r", RESULT), bench.ledger.forget(["r"])), id="read and deleted"),
        pytest.param(lambda bench: bench.redis.delete(bench.names.record("r")), id="record lost"),
        pytest.param(lambda bench: bury(bench), id="stopped as a killer"),
    ],
)
@pytest.mark.parametrize("digest", ["d", "another"])
def test_a_key_is_free_when_its_record_is_over(bench: Bench, end: Callable[[Bench], object], digest: str) -> None:
    enter(bench, "r")
    end(bench)
    assert enter(bench, "s", digest) == "entered"
    assert holder(bench) == "s"
    assert enter(bench, "t", digest) == "same s"
    assert enter(bench, "t", f"not {digest}") == "conflict"


def bury(bench: Bench) -> None:
    for worker in ("1.run1@one", "1.run2@two", "1.run3@three"):
        claim = bench.claimed("r", worker)
        if claim.alone:
            assert bench.ledger.start("r", claim.token)
        bench.expire_lease(claim)
        bench.sweep()
    assert b"TooManyDeliveriesError" in bench.answers("r")[0]


def test_a_record_entered_again_is_its_own_whoever_holds_its_key_by_now(bench: Bench) -> None:
    enter(bench, "r")
    assert enter(bench, "r") == "known"  # the reply was lost
    bench.ledger.settle("r", CANCELLED)
    assert enter(bench, "r") == "answered"
    assert enter(bench, "s", "another") == "entered"
    assert enter(bench, "r") == "answered"
    bench.redis.flushdb()
    assert enter(bench, "r") == "entered"  # the broker had forgotten it
    assert holder(bench) == "r"


def test_a_key_lasts_as_long_as_its_answer_may(bench: Bench) -> None:
    enter(bench, "r", timeout_s=100, result_ttl_s=50)
    assert 140 < bench.redis.ttl(bench.names.key("k")) <= 150
    bench.ledger.settle("r", CANCELLED)
    enter(bench, "s", timeout_s=31_536_000, result_ttl_s=86_400)
    assert bench.redis.ttl(bench.names.key("k")) > 31_622_300


def test_a_key_that_was_lost_without_its_record_costs_a_second_run_and_no_answer(bench: Bench) -> None:
    enter(bench, "r")
    bench.redis.delete(bench.names.key("k"))
    assert enter(bench, "r") == "known"
    assert enter(bench, "s") == "entered"
    for record_id in ("r", "s"):
        answer(bench, record_id, RESULT)
        assert bench.answers(record_id) == {0: RESULT}


def test_a_full_queue_keeps_no_key_and_still_tells_whose_one_is(bench: Bench) -> None:
    bench.enter("other", limit_prompts=1)
    assert enter(bench, "r", limit_prompts=1) == "full 1"
    assert holder(bench) is None
    bench.ledger.settle("other", CANCELLED)
    bench.pop()
    assert enter(bench, "r", limit_prompts=1) == "entered"
    assert enter(bench, "s", limit_prompts=1) == "same r"


def test_a_broker_without_memory_keeps_no_key_and_still_tells_whose_one_is(bench: Bench) -> None:
    enter(bench, "r")
    bench.redis.config_set("maxmemory", "1")
    try:
        bench.redis.delete(f"{bench.names.prefix}memory")
        assert enter(bench, "s") == "same r"
        assert enter(bench, "s", "another") == "conflict"
        assert bench.enter("t", key="other", digest="d") == "full"
        assert not bench.redis.exists(bench.names.key("other"))
    finally:
        bench.redis.config_set("maxmemory", "0")
