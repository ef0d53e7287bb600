"""Requests over windows on the echo engine, where a word is a token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from promptmill.errors import EngineError, InvalidRequestError, PromptmillError, PromptTooLongError
from promptmill.protocol import (
    GenerationRequest,
    GenerationResult,
    answer_from_wire,
    answer_to_wire,
    requests_from_wire,
    requests_to_wire,
)
from promptmill_worker.echo import EchoEngine
from promptmill_worker.engine import EngineDiedError, OnText
from promptmill_worker.settings import EngineSettings

ask = GenerationRequest.of
SEVEN = "a b c d e f g"


class Watched(EchoEngine):
    """Keeps what was submitted to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(EngineSettings.read({}, model="echo", engine="echo", **options))
        self.requests: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[Any]:
        self.requests.append(request)
        return super().submit(request, on_text)


@pytest.fixture
def engine() -> Iterator[Watched]:
    with Watched() as engine:
        yield engine


def eventually(condition: Any) -> None:
    for _ in range(1_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_each_window_has_a_choice_and_the_text_is_all_of_them_in_order(engine: Watched) -> None:
    result = engine.submit(ask(SEVEN, window_tokens=3)).result(timeout=30)
    assert [(choice.index, choice.window, choice.text) for choice in result.choices] == [
        (0, (0, 3), "a b c"),
        (1, (3, 6), "d e f"),
        (2, (6, 7), "g"),
    ]
    assert (result.text, result.finish_reason) == ("a b c\nd e f\ng", "stop")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 7)


def test_each_window_is_streamed_as_a_choice(engine: Watched) -> None:
    told: dict[int, str] = {0: "", 1: "", 2: ""}
    lock = threading.Lock()

    def on_text(choice: int, piece: str) -> None:
        with lock:
            told[choice] += piece

    result = engine.submit(ask(SEVEN, window_tokens=3), on_text).result(timeout=30)
    assert [told[choice.index] for choice in result.choices] == [choice.text for choice in result.choices]


def test_with_a_stride_windows_overlap_and_their_tokens_count_as_often_as_they_ran(engine: Watched) -> None:
    result = engine.submit(ask(SEVEN, window_tokens=3, stride_tokens=2, max_tokens=2)).result(timeout=30)
    assert [choice.text for choice in result.choices] == ["a b", "c d", "e f"]
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (9, 6)
    assert result.finish_reason == "length"


def test_of_a_chat_the_last_user_message_is_cut_and_all_else_is_put_around_each_window(engine: Watched) -> None:
    messages = [
        {"role": "system", "content": "Summarise."},
        {"role": "user", "content": "an example"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "Here it is:"},
    ]
    engine.submit(ask(messages=messages, window_tokens=2)).result(timeout=30)
    sent = [[message.content for message in request.messages or ()] for request in engine.requests[1:]]
    assert sent == [["Summarise.", "an example", "ok", text, "Here it is:"] for text in ("one two", " three")]


def test_a_window_is_drawn_with_the_seed_plus_its_number(engine: Watched) -> None:
    engine.submit(ask(SEVEN, window_tokens=3, seed=2**63 - 2, temperature=0.5)).result(timeout=30)
    sampling = [request.sampling for request in engine.requests[1:]]
    assert [given.seed for given in sampling] == [2**63 - 2, 2**63 - 1, 0]
    assert {given.temperature for given in sampling} == {0.5}
    assert {given.window_tokens for given in sampling} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_tokens": 2}, "stride_tokens needs window_tokens"),
        ({"window_tokens": 2, "stride_tokens": 3}, "stride_tokens 3 would skip text between windows of 2"),
        ({"window_tokens": 2, "n": 2}, "n and window_tokens don't go together"),
        ({"window_tokens": 2, "truncate_prompt_tokens": 9}, "truncate_prompt_tokens and window_tokens don't go"),
        ({"window_tokens": 0}, r"window_tokens: 0 is not allowed.*range: ≥ 1"),
        ({"window_tokens": 2, "stride_tokens": 0}, r"stride_tokens: 0 is not allowed.*range: ≥ 1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_it_is_sent(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ask("a", **options)


def test_more_than_a_thousand_windows_are_refused_with_their_number(engine: Watched) -> None:
    assert len(engine.submit(ask("w " * 1_000, window_tokens=1)).result(timeout=30).choices) == 1_000
    with pytest.raises(InvalidRequestError, match=r"make 1,001 windows of a text of 1,001 tokens, at most 1,000"):
        engine.submit(ask("w " * 1_001, window_tokens=1)).result(timeout=30)


def test_a_chat_in_which_no_user_speaks_is_refused(engine: Watched) -> None:
    with pytest.raises(InvalidRequestError, match="cut the last message of a chat's user, and this chat has none"):
        engine.submit(ask(messages=[{"role": "system", "content": "a"}], window_tokens=1)).result(timeout=30)


def test_a_window_that_does_not_fit_the_context_is_refused_with_both_numbers() -> None:
    with Watched(max_model_len=16) as engine:
        assert len(engine.submit(ask("w " * 40, window_tokens=15)).result(timeout=30).choices) == 3
        with pytest.raises(PromptTooLongError, match=r"window 0 .* 16 tokens, at most 15 .* smaller window") as caught:
            engine.submit(ask("w " * 40, window_tokens=16)).result(timeout=30)
        assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (16, 15)


class Failing(Watched):
    """Fails for the window " c"; the others run for long."""

    def __init__(self, failure: Exception, **options: Any) -> None:
        super().__init__(echo_tokens_per_s=0.001, **options)
        self._window_failure = failure

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[Any]:
        if request.prompt != " c":
            return super().submit(request, on_text)
        if not isinstance(self._window_failure, PromptmillError):
            raise self._window_failure
        failed: Future[Any] = Future()
        failed.set_exception(self._window_failure)
        return failed


@pytest.mark.parametrize("failure", [EngineError("no"), EngineDiedError("no"), RuntimeError("no")])
def test_the_error_of_one_window_is_that_of_all_and_the_others_leave_the_engine(failure: Exception) -> None:
    with Failing(failure) as engine:
        future = engine.submit(ask("a b c d e", window_tokens=1))
        assert future.exception(timeout=30) is failure
        eventually(lambda: engine.running == 0)
        assert len(engine.requests) == 3  # all of them, and two windows: none was begun after the failure


def test_no_more_windows_than_a_batch_holds_are_in_the_engine_and_cancelling_takes_them_out() -> None:
    with Watched(echo_tokens_per_s=0.001, max_batch=2) as engine:
        future = engine.submit(ask(SEVEN, window_tokens=1))
        eventually(lambda: engine.running == 2)
        time.sleep(0.2)
        assert engine.running == 2
        assert future.cancel()
        eventually(lambda: engine.running == 0 and not window_threads())
        assert len(engine.requests) == 3
        with pytest.raises(CancelledError):
            future.result()


def test_a_window_that_has_ended_makes_room_for_the_next() -> None:
    with Watched(echo_tokens_per_s=100, max_batch=2) as engine:
        result = engine.submit(ask(SEVEN, window_tokens=1)).result(timeout=30)
        assert result.text == "a\nb\nc\nd\ne\nf\ng"
        assert 0 < result.timings.time_to_first_token_s < result.timings.generation_s
        eventually(lambda: not window_threads())


def test_partial_text_is_that_of_the_windows_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    with Watched(echo_tokens_per_s=0.001) as engine:
        future = engine.submit(ask(SEVEN, window_tokens=3))
        eventually(lambda: engine.running == 3)
        at = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: at + 2_500)
        assert engine.partial_text(future) == "a b\nd e\ng"


def test_closing_the_engine_ends_all_windows() -> None:
    with Watched(echo_tokens_per_s=0.001) as engine:
        future = engine.submit(ask(SEVEN, window_tokens=3))
        eventually(lambda: engine.running == 3)
    with pytest.raises(EngineDiedError):
        future.result(timeout=30)


def test_a_tokenizer_that_fails_fails_one_request_only(engine: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "token_spans", lambda text: text / 0)
        with pytest.raises(EngineError, match="tokenised: TypeError"):
            engine.submit(ask("secret words", window_tokens=1)).result(timeout=30)
    assert engine.submit(ask("a b", window_tokens=1)).result(timeout=30).text == "a\nb"


def test_windows_travel_and_are_absent_where_none_were_asked_for(engine: Watched) -> None:
    [request] = requests_from_wire(requests_to_wire([ask(SEVEN, window_tokens=4, stride_tokens=2)]))
    assert (request.sampling.window_tokens, request.sampling.stride_tokens) == (4, 2)
    result = answer_from_wire(answer_to_wire(engine.submit(request).result(timeout=30)))
    assert isinstance(result, GenerationResult)
    assert [choice.window for choice in result.choices] == [(0, 4), (2, 6), (4, 7)]
    without = engine.submit(ask("a b", n=2)).result()
    assert b"window" not in answer_to_wire(without)
    assert (without.text, without.choices[0].window) == ("a b", None)


def window_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "promptmill windows"]
