"""How the ledger calls its scripts: a broker that forgets, is in trouble, or is short of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Timer
from typing import Any

import pytest
import redis
from test_ledger import CANCELLED, Bench
from workers import wait_until

from promptmill.blocking import BlockingTransport, run
from promptmill.ledger import Asker, Entry, Ledger, calls
from promptmill.transport import Command


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url)
    yield bench
    bench.redis.close()


def test_a_broker_that_has_forgotten_the_scripts_is_given_them_again(bench: Bench) -> None:
    bench.redis.script_flush()
    assert bench.enter("r") == "entered"


class Restarted(BlockingTransport):
    """To a broker that is restarted, so that it knows no script, each time one was loaded, the first ``times``."""

    times = 2

    async def execute(self, commands: Sequence[Command], *, waits: bool = False) -> list[Any]:
        replies = await super().execute(commands, waits=waits)
        if commands[0][0] == "SCRIPT LOAD" and self.times:
            self.times -= 1
            await super().execute([("SCRIPT FLUSH",)])
        return replies


def test_a_broker_that_forgets_a_script_that_was_just_loaded_is_asked_again(bench: Bench) -> None:
    bench.enter("r")
    bench.redis.script_flush()
    settle = calls.settle(bench.names, ["r"], CANCELLED)
    transport = Restarted(bench.redis)
    with pytest.raises(redis.exceptions.NoScriptError):
        run(Asker(transport).ask(settle, patience_s=0.0))
    assert run(Asker(transport).ask(settle, patience_s=30.0)) == 1
    assert transport.times == 0


def test_looking_tells_answers_and_what_still_waits(bench: Bench) -> None:
    bench.enter("r", 3)
    bench.finish(bench.claimed("r", room=1), {0: b"{}"})
    [known, unknown] = bench.ledger.look(["r", "unknown"])
    assert (known.answers, known.open) == ({0: b"{}"}, {1, 2})
    assert (unknown.answers, unknown.open) == ({}, None)


def test_a_broker_out_of_memory_is_waited_for(bench: Bench) -> None:
    bench.redis.set(f"{bench.names.prefix}memory", 10**9)  # so that it is not asked first
    bench.redis.config_set("maxmemory", "1")
    relief = Timer(0.2, lambda: bench.redis.config_set("maxmemory", "0"))
    try:
        with pytest.raises(redis.exceptions.ResponseError):
            bench.enter("r")
        relief.start()
        patient = Ledger(bench.redis, bench.names, patience_s=30.0)
        assert patient.enter([Entry("r", "promptmill.m|6", b"{}", 1)]) == ["entered"]
    finally:
        relief.cancel()
        bench.redis.config_set("maxmemory", "0")


def test_a_broker_out_of_memory_takes_answers_and_all_that_ends_work(bench: Bench) -> None:
    bench.enter("r", 4)
    held, lost = bench.claimed("r", "a", room=1), bench.claimed("r", "b", room=1)
    bench.enter_plain_call("call")
    bench.expire_lease(lost)
    bench.redis.config_set("maxmemory", "1")
    try:
        assert bench.sweep() == ["lease r"]
        assert bench.ledger.renew([held.token], 60.0) == []
        assert bench.ledger.put_back("r", bench.claimed("r", "c", room=2).token) == 2
        assert bench.finish(held, {0: b"{}"}, last=True) == ()
        assert bench.ledger.settle("r", CANCELLED) == 3
        assert bench.finish(bench.claimed("call"), {0: b"{}"}, last=True) == ()
        assert bench.enter_plain_call("another") == "entered"
        bench.redis.delete(f"{bench.names.prefix}memory")  # within half a second its memory is looked at again
        assert bench.enter("s") == "full"
    finally:
        bench.redis.config_set("maxmemory", "0")
    assert [(record_id, position) for record_id, position, _ in bench.stream()] == [
        ("r", 0),
        ("r", 1),
        ("r", 2),
        ("r", 3),
    ]


# Limits.


def test_a_queue_takes_no_more_prompts_than_its_limit(bench: Bench) -> None:
    assert bench.enter("a", 3, limit_prompts=5) == "entered"
    assert bench.enter("b", 3, limit_prompts=5) == "full 3"
    assert bench.enter("a", 3, limit_prompts=5) == "known"
    assert bench.enter("b", 2, limit_prompts=5) == "entered"
    assert bench.enter_plain_call("call") == "entered"
    bench.finish_all(bench.claimed("a"))
    assert bench.enter("c", 3, limit_prompts=5) == "full 3"
    assert bench.enter("c", 2, limit_prompts=5) == "entered"


def test_messages_of_cancelled_prompts_do_not_pile_up_without_a_bound(bench: Bench) -> None:
    for number in range(10):
        assert bench.enter(f"r{number}", limit_prompts=10) == "entered"
        bench.ledger.settle(f"r{number}", CANCELLED)
    assert bench.enter("one more", limit_prompts=10) == "full 10"
    bench.pop()
    assert bench.enter("one more", limit_prompts=10) == "entered"


def test_no_prompt_is_counted_any_more_when_all_are_answered(bench: Bench) -> None:
    bench.enter("a", 3)
    bench.enter_plain_call("call")
    bench.ledger.settle("a", CANCELLED)
    bench.finish(bench.claimed("call"), {0: b"{}"}, last=True)
    bench.ledger.drop("call")
    bench.ledger.drop("call")
    assert not bench.redis.exists(f"{bench.names.prefix}prompts")


def test_a_broker_that_is_three_quarters_full_takes_no_more(bench: Bench) -> None:
    def fill(share: float) -> None:
        bench.redis.config_set("maxmemory", int(bench.redis.info("memory")["used_memory"] / share))

    try:
        fill(0.6)
        assert bench.enter("a") == "entered"
        fill(0.9)
        bench.redis.delete(f"{bench.names.prefix}memory")
        assert bench.enter("b") == "full"
        fill(0.5)
        wait_until(lambda: bench.enter("b") == "entered", "it is asked again")
    finally:
        bench.redis.config_set("maxmemory", "0")


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
        patient.claim("r", "r/a", 1, 60.0, 3)
