"""How the ledger calls its scripts: a broker that forgets, is in trouble, or is short of memory."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Timer

import pytest
import redis
from test_ledger import Bench

from promptmill.ledger import Ledger


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def test_a_broker_that_has_forgotten_the_scripts_is_given_them_again(bench: Bench) -> None:
    bench.redis.script_flush()
    assert bench.enter("r") == "entered"


def test_looking_tells_answers_and_what_still_waits(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.finish(bench.claimed("r", room=1), {0: b"{}"})
    [known, unknown] = bench.ledger.look(["r", "unknown"])
    assert (known.answers, known.open) == ({0: b"{}"}, {1, 2})
    assert (unknown.answers, unknown.open) == ({}, None)


def test_a_broker_out_of_memory_is_waited_for(bench: Bench) -> None:
    bench.enter("r")
    claim = bench.claimed("r")
    bench.redis.config_set("maxmemory", "1")
    relief = Timer(0.2, lambda: bench.redis.config_set("maxmemory", "0"))
    try:
        with pytest.raises(redis.exceptions.ResponseError):
            bench.finish_all(claim)
        relief.start()
        patient = Ledger(bench.redis, bench.names, patience_s=30.0)
        assert patient.finish("r", claim.token, [(0, False, b"{}")], True) == ()
    finally:
        relief.cancel()
        bench.redis.config_set("maxmemory", "0")
    assert bench.stream() == [("r", 0, b"{}")]


@pytest.mark.parametrize(
    "message",
    [
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "Error running script (call to f_0): @user_script:27: @user_script: 27: -OOM command not allowed when used",
        "NOREPLICAS Not enough good replicas to write.",
    ],
)
def test_a_broker_in_trouble_is_asked_again(bench: Bench, message: str) -> None:
    outcomes = iter([redis.exceptions.ResponseError(message), None])

    def ask() -> str:
        if error := next(outcomes):
            raise error
        return "answer"

    assert Ledger(bench.redis, bench.names, patience_s=30.0).patiently(ask) == "answer"


def test_an_error_of_ours_is_not_tried_again(bench: Bench) -> None:
    bench.redis.set(bench.names.record("r"), "not a hash")
    patient = Ledger(bench.redis, bench.names, patience_s=1e9)
    with pytest.raises(redis.exceptions.ResponseError, match=r"WRONGTYPE|wrong kind"):
        patient.claim("r", "r/a", 1, 60.0)
