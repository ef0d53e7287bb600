"""The echo engine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from promptmill.errors import EngineError, PromptTooLongError
from promptmill.protocol import GenerationRequest
from promptmill_worker.echo import FAULT_DIE, FAULT_ERROR, FAULT_HANG, FAULT_KILL, EchoEngine
from promptmill_worker.engine import Engine, EngineDiedError

ask = GenerationRequest.of

Load = Callable[..., EchoEngine]


@pytest.fixture
def load() -> Iterator[Load]:
    """Loads echo engines that are closed at the end."""
    engines: list[Engine] = []

    def load(**options: Any) -> Engine:
        engines.append(Engine.load("echo", engine="echo", **options))
        return engines[-1]

    yield load  # type: ignore[misc]
    for engine in engines:
        engine.close()


def eventually(condition: Callable[[], object]) -> None:
    """Waits until ``condition`` holds."""
    for _ in range(1_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_it_answers_with_the_words_of_the_prompt_before_submit_returns(load: Load) -> None:
    future = load().submit(ask("one  two three"))
    assert future.done()
    result = future.result()
    assert (result.text, result.finish_reason, result.model) == ("one two three", "stop", "echo")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3, 3)


def test_a_chat_is_answered_with_its_last_message(load: Load) -> None:
    messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "last one"}]
    assert load().submit(ask(messages=messages)).result().text == "last one"


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"max_tokens": 2}, "a b", "length"),
        ({"max_tokens": 4}, "a b c d", "stop"),
        ({"stop": ["c", "b c"]}, "a ", "stop"),
        ({"stop": "c", "include_stop_str_in_output": True}, "a b c", "stop"),
        ({"stop": "z"}, "a b c d", "stop"),
        ({"truncate_prompt_tokens": 2}, "c d", "stop"),
    ],
)
def test_it_honours_the_parameters(load: Load, options: dict[str, Any], text: str, reason: str) -> None:
    result = load().submit(ask("a b c d", **options)).result()
    assert (result.text, result.finish_reason) == (text, reason)


def test_n_gives_as_many_choices_and_counts_their_tokens(load: Load) -> None:
    result = load().submit(ask("a b", n=3)).result()
    assert [(choice.index, choice.text) for choice in result.choices] == [(i, "a b") for i in range(3)]
    assert result.usage.completion_tokens == 6


def test_it_takes_every_parameter_and_is_sure_of_its_words(load: Load) -> None:
    request = ask("a b", min_tokens=1, repetition_penalty=1.1, logit_bias={5: 1.0}, presence_penalty=1, logprobs=3)
    (choice,) = load().submit(request).result().choices
    assert [(entry.token, entry.logprob, entry.top) for entry in choice.logprobs or ()] == [("a", 0, ()), ("b", 0, ())]
    assert load().submit(ask("a b")).result().choices[0].logprobs is None


def test_a_prompt_beyond_max_model_len_is_refused_with_both_numbers(load: Load) -> None:
    engine = load(max_model_len=16)
    assert engine.info.context_tokens == 16
    with pytest.raises(PromptTooLongError, match=r"16 words, at most 15") as caught:
        engine.submit(ask("w " * 16)).result()
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (16, 15)
    result = engine.submit(ask("w " * 15)).result()
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 1)


def test_at_a_speed_requests_run_side_by_side_and_end_in_the_order_of_their_lengths(load: Load) -> None:
    engine = load(echo_tokens_per_s=50)
    ended: list[str] = []
    futures = [engine.submit(ask(" ".join([name] * words))) for name, words in (("b", 100), ("a", 50))]
    for future in futures:
        future.add_done_callback(lambda future: ended.append(future.result().text[0]))
    assert engine.running == 2
    assert futures[0].result(timeout=30).timings.generation_s == pytest.approx(100 / 50)
    eventually(lambda: ended == ["a", "b"])
    eventually(lambda: engine.running == 0)
    assert sum(thread.name == "promptmill-echo-timer" for thread in threading.enumerate()) == 1


def test_steps_grow_while_a_request_runs(load: Load) -> None:
    engine = load(echo_tokens_per_s=0.001)
    engine.submit(ask("a"))
    steps = engine.steps
    eventually(lambda: engine.steps > steps + 2)


def test_a_cancelled_request_no_longer_runs(load: Load) -> None:
    engine = load(echo_tokens_per_s=0.001)
    future = engine.submit(ask("a"))
    assert future.cancel()
    assert engine.running == 0
    with pytest.raises(CancelledError):
        future.result()


def test_partial_text_is_the_words_that_are_due(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(echo_tokens_per_s=0.001)
    future = engine.submit(ask("a b c d", max_tokens=3))
    assert engine.partial_text(future) == ""
    at = time.monotonic()
    for passed_s, text in [(1_500, "a"), (2_500, "a b"), (3_500, "a b c"), (9_999, "a b c")]:
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic", lambda passed_s=passed_s: at + passed_s)
            assert engine.partial_text(future) == text
    assert engine.running == 1
    assert engine.partial_text(Future()) == ""


def test_what_has_ended_has_no_partial_text(load: Load) -> None:
    assert (engine := load()).partial_text(engine.submit(ask("a b"))) == ""
    engine = load(echo_tokens_per_s=1_000)
    futures = [engine.submit(ask("a b", max_tokens=n)) for n in (1, 2)]
    assert [future.result(timeout=10).text for future in futures] == ["a", "a b"]
    cancelled = engine.submit(ask("a " * 50_000, max_tokens=50_000))
    assert cancelled.cancel()
    assert [engine.partial_text(future) for future in (*futures, cancelled)] == [""] * 3
    eventually(lambda: engine.running == 0)


def test_close_ends_what_runs_and_what_comes_later(load: Load) -> None:
    engine = load(echo_tokens_per_s=0.001)
    future = engine.submit(ask("a"))
    engine.close()
    engine.close()
    for pending in (future, engine.submit(ask("b"))):
        with pytest.raises(EngineDiedError):
            pending.result(timeout=10)
    assert engine.running == 0
    assert engine.failure is None


def test_generate_yields_results_in_order(load: Load) -> None:
    results = list(load(echo_tokens_per_s=1_000).generate(["a b c", "d"], max_tokens=2))
    assert [(result.index, result.text) for result in results] == [(0, "a b"), (1, "d")]


def test_fault_error_fails_one_prompt_only(load: Load) -> None:
    engine = load()
    with pytest.raises(EngineError):
        engine.submit(ask(FAULT_ERROR)).result()
    assert engine.submit(ask("a")).result().text == "a"


def test_fault_die_ends_the_engine_and_answers_nobody_with_an_engine_error(load: Load) -> None:
    engine = load(echo_tokens_per_s=0.001)
    before = engine.submit(ask("a"))
    killer = engine.submit(ask(FAULT_DIE))
    after = engine.submit(ask("b"))
    for future in (before, killer, after):
        with pytest.raises(EngineDiedError):
            future.result(timeout=10)
    assert engine.failure is not None
    assert engine.running == 0


@pytest.mark.parametrize("speed", [0, 1_000])
def test_fault_hang_stops_answers_and_steps(load: Load, speed: float) -> None:
    engine = load(echo_tokens_per_s=speed)
    hanging = engine.submit(ask(FAULT_HANG))
    later = engine.submit(ask("a"))
    steps = engine.steps
    time.sleep(0.3)
    assert [hanging.done(), later.done()] == [False, False]
    assert (engine.running, engine.steps, engine.failure) == (2, steps, None)
    engine.close()
    with pytest.raises(EngineDiedError):
        later.result(timeout=10)


def test_fault_kill_kills_the_process() -> None:
    code = (
        "from promptmill_worker import Engine; from promptmill.protocol import GenerationRequest as R;"
        f"Engine.load('echo', engine='echo').submit(R.of({FAULT_KILL!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -9


def test_the_echo_engine_imports_no_torch() -> None:
    code = (
        "import sys; from promptmill_worker import Engine;"
        "list(Engine.load('echo', engine='echo').generate(['a']));"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
