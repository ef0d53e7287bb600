"""The streams of texts: who may write into them, how they end, and what bounds them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import redis
from test_ledger import CANCELLED, Bench

from promptmill.ledger import Claim, Piece


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def emit(bench: Bench, claim: Claim, *texts: str, position: int = 0) -> int:
    """Emits pieces of choice 0."""
    offsets = accumulate(map(len, texts), initial=0)
    return bench.ledger.emit(
        [
            Piece(claim.record_id, claim.token, position, 0, offset, True, text)
            for offset, text in zip(offsets, texts, strict=False)
        ]
    )


def stream(bench: Bench, position: int = 0) -> list[str]:
    """What its readers see: the text of each entry, or "end"."""
    entries = bench.redis.xrange(bench.names.stream("r", position))
    return [fields.get(b"text", b"end").decode() for _, fields in entries]


def test_the_holder_of_the_lease_writes_pieces_and_the_answer_ends_the_stream(bench: Bench) -> None:
    bench.enter("r", 2, streams=True)
    claim = bench.claimed("r", "7.run@worker")
    assert emit(bench, claim, "grü", "n") == 2
    [(_, first), (_, second)] = bench.redis.xrange(bench.names.stream("r", 0))
    assert first == {b"run": b"7.run", b"choice": b"0", b"offset": b"0", b"repeats": b"1", b"text": "grü".encode()}
    assert second[b"offset"] == b"3"
    bench.finish(claim, {0: b"{}"})
    assert stream(bench) == ["grü", "n", "end"]
    assert stream(bench, 1) == []
    bench.finish(claim, {1: b"{}"}, last=True)
    assert stream(bench, 1) == ["end"]


def test_whose_lease_is_lost_writes_nothing_between_another_ones_pieces(bench: Bench) -> None:
    bench.enter("r", streams=True)
    sleeper = bench.claimed("r", "1.one@one")
    emit(bench, sleeper, "once")
    bench.expire_lease(sleeper)
    assert emit(bench, sleeper, "twice") == 1  # until the sweep comes nobody else can have it
    bench.sweep()
    assert emit(bench, sleeper, "thrice") == 0
    other = bench.claimed("r", "1.two@two")
    assert bench.ledger.emit(
        [Piece("r", token, 0, 0, 0, True, text) for token, text in ((sleeper.token, "foreign"), (other.token, "new"))]
    )
    assert stream(bench) == ["once", "twice", "new"]
    bench.finish_all(other)
    assert emit(bench, other, "late") == emit(bench, sleeper, "late") == 0
    assert stream(bench)[-1] == "end"


def test_nothing_is_written_for_a_record_that_is_not_streamed(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.claimed("r")
    assert emit(bench, claim, "text") == 0
    bench.finish_all(claim)
    assert not bench.redis.exists(bench.names.stream("r", 0))


def test_cancelling_ends_the_stream(bench: Bench) -> None:
    bench.enter("r", streams=True)
    emit(bench, bench.claimed("r"), "text")
    bench.ledger.settle("r", CANCELLED)
    assert stream(bench) == ["text", "end"]


def test_a_deadline_ends_the_stream_of_what_never_ran(bench: Bench) -> None:
    bench.enter("r", streams=True)
    bench.expire_record("r")
    bench.sweep()
    assert stream(bench) == ["end"]


def test_a_stream_has_a_bound_and_a_time_to_live(bench: Bench) -> None:
    bench.enter("r", streams=True)
    claim = bench.claimed("r")
    key = bench.names.stream("r", 0)
    assert emit(bench, claim, *["a"] * 21_000) == 21_000
    assert 20_000 <= bench.redis.xlen(key) < 20_500
    assert 500 < bench.redis.ttl(key) <= 600
    bench.redis.expire(key, 9)
    bench.finish_all(claim)
    assert bench.redis.ttl(key) > 500


def test_a_full_broker_takes_the_answer_and_no_pieces(bench: Bench) -> None:
    bench.enter("r", streams=True)
    claim = bench.claimed("r")
    bench.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.RedisError, match=r"OOM|maxmemory"):
            emit(bench, claim, "text")
        bench.finish_all(claim)
    finally:
        bench.redis.config_set("maxmemory", 0)
    assert stream(bench) == ["end"]
    assert bench.answers("r") == {0: b"{}"}
