"""The continuous engine on the real demo model, against model.generate() as the reference."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from promptmill.errors import EngineError, InvalidRequestError, PromptTooLongError
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker import batching
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.engine import EngineDiedError
from promptmill_worker.settings import EngineSettings

pytestmark = pytest.mark.model

ask = GenerationRequest.of


def chat(question: str, **parameters: Any) -> GenerationRequest:
    """A chat request of one user message."""
    return ask(messages=[{"role": "user", "content": question}], **parameters)


@contextmanager
def another_engine(checkpoint: Checkpoint, **options: Any) -> Iterator[ContinuousEngine]:
    """A second engine on the loaded model; the session's own stays idle meanwhile."""
    engine = ContinuousEngine(checkpoint, EngineSettings.read(model="demo", **options))
    try:
        yield engine
    finally:
        engine.close()


def said(result: GenerationResult) -> list[Any]:
    """What a result says; in the last digits of log-probabilities the batch shows."""
    return [
        (choice.text, choice.finish_reason, [entry.token_id for entry in choice.logprobs or ()])
        for choice in result.choices
    ]


def eventually(condition: Callable[[], object]) -> None:
    """Waits until ``condition`` holds."""
    for _ in range(6_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def by_generate(checkpoint: Checkpoint, question: str, max_tokens: int) -> str:
    """What transformers' own generate() answers to a chat of one message, greedily."""
    inputs = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        out = checkpoint.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return checkpoint.tokenizer.decode(out[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def test_greedy_texts_equal_generate(engine: ContinuousEngine, checkpoint: Checkpoint, questions: list[str]) -> None:
    lengths = [8, 16, 24, 12] * 2
    asked = [(question[:80], length) for question, length in zip(questions, lengths, strict=False)]
    futures = [engine.submit(chat(question, max_tokens=n, temperature=0)) for question, n in asked]
    texts = [future.result().text for future in futures]
    assert texts == [by_generate(checkpoint, question, n) for question, n in asked]


def test_mixed_requests_in_one_batch_equal_each_of_them_alone(
    shallow_engine: ContinuousEngine, questions: list[str]
) -> None:
    mixes: list[dict[str, Any]] = [
        {"temperature": 0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.8},
        {"seed": 3, "top_k": 20, "temperature": 0.7},
        {"seed": 4, "min_p": 0.05, "temperature": 1.5},
        {"seed": 5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "n": 2},
        {"seed": 6, "repetition_penalty": 1.3, "logprobs": 2},
        {"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"seed": 7, "logit_bias": {260: 3.0}, "min_tokens": 5, "stop": "a"},
    ]
    requests = [chat(questions[i][:60], max_tokens=6 + i % 4, **mixes[i % len(mixes)]) for i in range(32)]
    together = [shallow_engine.submit(request) for request in requests]
    together = [future.result() for future in together]
    backwards = [shallow_engine.submit(request) for request in requests[::-1]]
    backwards = [future.result() for future in backwards][::-1]
    for index, request in enumerate(requests):
        alone = shallow_engine.submit(request).result()
        assert said(alone) == said(together[index]) == said(backwards[index]), request.sampling


def test_choices_of_one_request_differ_and_a_seed_brings_them_back(engine: ContinuousEngine) -> None:
    request = ask("Once upon a time", n=4, seed=11, max_tokens=12)
    first, again = engine.submit(request), engine.submit(request)
    texts = [choice.text for choice in first.result().choices]
    assert len(set(texts)) == 4
    assert [choice.text for choice in again.result().choices] == texts
    unseeded = [engine.submit(ask("Once upon a time", max_tokens=12)) for _ in range(2)]
    assert unseeded[0].result().text != unseeded[1].result().text


def test_a_result_tells_usage_timings_and_why_it_ended(engine: ContinuousEngine) -> None:
    short = engine.submit(ask("Once upon a time", max_tokens=3, temperature=0)).result()
    assert (short.finish_reason, short.usage.completion_tokens, short.usage.prompt_tokens) == ("length", 3, 4)
    assert 0 < short.timings.time_to_first_token_s <= short.timings.generation_s
    hello = chat("Say only the word hello.", max_tokens=40, temperature=0)
    long = engine.submit(hello).result()
    assert long.finish_reason == "stop"
    assert "<|im_end|>" not in long.text
    shown = engine.submit(
        chat(
            "Say only the word hello.",
            max_tokens=40,
            temperature=0,
            skip_special_tokens=False,
            include_stop_str_in_output=True,
        )
    ).result()
    assert shown.text == long.text + "<|im_end|>"
    on = chat("Say only the word hello.", max_tokens=40, temperature=0, ignore_eos=True)
    assert engine.submit(on).result().usage.completion_tokens == 40


def test_a_stop_string_that_spans_tokens_ends_the_text_in_front_of_it(
    engine: ContinuousEngine, checkpoint: Checkpoint
) -> None:
    question = "Count from one to ten in words."
    whole = engine.submit(chat(question, max_tokens=24, temperature=0)).result()
    ids = checkpoint.tokenizer(whole.text)["input_ids"]
    first, second = (checkpoint.tokenizer.decode([token]) for token in ids[6:8])
    stop = first[-2:] + second[:2]
    assert not any(stop in checkpoint.tokenizer.decode([token]) for token in ids)
    cut = engine.submit(chat(question, max_tokens=24, temperature=0, stop=["never", stop])).result()
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    kept = engine.submit(
        chat(question, max_tokens=24, temperature=0, stop=stop, include_stop_str_in_output=True)
    ).result()
    assert kept.text == cut.text + stop
    eventually(lambda: active(engine) == 0)


def test_a_stop_token_ends_the_text(engine: ContinuousEngine, checkpoint: Checkpoint) -> None:
    whole = engine.submit(ask("Once upon a time", max_tokens=12, temperature=0)).result()
    ids = checkpoint.tokenizer(whole.text)["input_ids"]
    cut = engine.submit(ask("Once upon a time", max_tokens=12, temperature=0, stop_token_ids=[ids[4]])).result()
    assert cut.finish_reason == "stop"
    assert cut.text == checkpoint.tokenizer.decode(ids[: ids.index(ids[4])])


def active(engine: ContinuousEngine) -> int:
    """How many sequences transformers has in its batch or in line for it."""
    scheduler = engine._manager.batch_processor.scheduler
    return len(scheduler.active_requests) + len(scheduler.waiting_requests)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_while_neighbours_finish(
    shallow_checkpoint: Checkpoint,
) -> None:
    with another_engine(shallow_checkpoint, max_model_len=64) as engine:
        assert engine.info.context_tokens == 64
        neighbour = engine.submit(ask("Once upon a time", max_tokens=30, ignore_eos=True))
        with pytest.raises(PromptTooLongError, match="64 tokens, at most 63") as caught:
            engine.submit(ask("a" + " a" * 63)).result()
        assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (64, 63)
        clipped = engine.submit(ask("a" + " a" * 59, max_tokens=500, ignore_eos=True)).result()
        assert (clipped.usage.prompt_tokens, clipped.usage.completion_tokens) == (60, 4)
        assert clipped.finish_reason == "length"
        cut = engine.submit(ask("a" + " a" * 200, truncate_prompt_tokens=10, max_tokens=2)).result()
        assert cut.usage.prompt_tokens == 10
        assert neighbour.result().usage.completion_tokens == 30
        assert engine.failure is None


def test_more_than_the_cache_holds_at_once_ends_right_for_everyone(
    shallow_checkpoint: Checkpoint, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(questions[i][:80], max_tokens=70, temperature=i % 2, seed=i, ignore_eos=True) for i in range(6)]
    with another_engine(shallow_checkpoint) as roomy:
        expected = [future.result().text for future in [roomy.submit(request) for request in requests]]
    monkeypatch.setattr(batching, "SENSIBLE_REQUEST_TOKENS", 16)
    with another_engine(shallow_checkpoint, max_model_len=96, max_batch=4) as tight:
        assert tight.info.cache_tokens <= 112
        futures = [tight.submit(request) for request in requests]
        assert [future.result().text for future in futures] == expected


def test_cancelling_a_future_frees_its_place_in_the_batch(shallow_checkpoint: Checkpoint) -> None:
    with another_engine(shallow_checkpoint, max_batch=1) as engine:
        running = engine.submit(ask("Once upon a time", max_tokens=4_000, ignore_eos=True, n=2))
        waiting = engine.submit(ask("Once upon a time", max_tokens=4_000, ignore_eos=True))
        next_one = engine.submit(ask("Once upon a time", max_tokens=3))
        eventually(lambda: engine.steps > 3)
        assert engine.running == 3
        assert running.cancel()
        assert waiting.cancel()
        steps = engine.steps
        assert next_one.result(timeout=300).usage.completion_tokens <= 3
        assert engine.steps < steps + 200
        eventually(lambda: (engine.running, active(engine)) == (0, 0))
        with pytest.raises(CancelledError):
            running.result()


@pytest.mark.parametrize(
    "option",
    [
        {"logit_bias": {49_152: 1.0}},
        {"stop_token_ids": [49_152]},
    ],
)
def test_a_token_that_there_is_not_is_refused_by_the_parameters_name(
    engine: ContinuousEngine, option: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(option))):
        engine.submit(ask("a", **option)).result()


def test_messages_for_a_model_without_a_chat_template_are_refused(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._tokenizer, "chat_template", None)
    with pytest.raises(InvalidRequestError, match="no chat template"):
        engine.submit(chat("hello")).result()


def test_messages_that_the_template_refuses_are_refused(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="template refuses these messages: many take"):
        engine.submit(chat("hello")).result()


def test_tokens_without_an_embedding_are_refused(engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._admission, "_vocabulary", 100)
    with pytest.raises(InvalidRequestError, match="vocabulary of 100"):
        engine.submit(ask("Once upon a time")).result()


def test_a_tokenizer_that_fails_fails_one_request_only(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine._admission, "_tokenizer", None)
        with pytest.raises(EngineError, match="tokenised"):
            engine.submit(ask("secret words")).result()
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_tokenizer", type("Broken", (), {"decode": lambda *_, **__: 1 / 0}))
        with pytest.raises(EngineError, match="decoded"):
            engine.submit(ask("secret words", max_tokens=2)).result()
    assert engine.submit(ask("Once upon a time", max_tokens=2)).result().usage.completion_tokens == 2


def test_a_loop_that_dies_ends_everything_with_engine_died_and_shows_no_prompt(
    shallow_checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    with another_engine(shallow_checkpoint) as engine:
        pending = [engine.submit(ask("marker prompt", max_tokens=4_000, ignore_eos=True)) for _ in range(3)]
        eventually(lambda: engine.steps > 2)

        def fail(**_: Any) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        engine._manager.logit_processor.prepare_tensor_args = fail
        for future in pending:
            with pytest.raises(EngineDiedError, match="RuntimeError"):
                future.result(timeout=60)
        assert isinstance(engine.failure, RuntimeError)
        eventually(lambda: engine.running == 0)
        with pytest.raises(EngineDiedError):
            engine.submit(ask("marker prompt")).result(timeout=60)
        engine._manager.add_request([1, 2, 3])  # what a submission that races with the death would do
    printed = capfd.readouterr()
    assert "marker" not in printed.err + printed.out
    assert "[1, 2, 3" not in printed.err + printed.out


def test_max_model_len_beyond_the_models_context_is_refused(shallow_checkpoint: Checkpoint) -> None:
    with (
        pytest.raises(ValueError, match=r"max_model_len: 10,000 .* 8,192"),
        another_engine(shallow_checkpoint, max_model_len=10_000),
    ):
        pass


SCRIPT = """
import gc, sys, threading, weakref
from promptmill_worker import Engine
with Engine.load({model!r}, dtype="float32") as engine:
    model = weakref.ref(engine._manager.model)
    texts = [r.text for r in engine.generate(["Once upon a time", "The sky"], max_tokens=4, temperature=0)]
    left = engine.submit(__import__("promptmill.protocol").protocol.GenerationRequest.of("x", max_tokens=9000))
    if {forget}:
        left.cancel()
        raise SystemExit("forgot to close")
assert all(texts) and model() is None, model()
assert left.exception().__class__.__name__ == "EngineDiedError"
assert threading.active_count() == 1, threading.enumerate()
engine.close()
print("closed")
"""


def test_engine_load_serves_in_one_process_and_gives_the_memory_back(shallow_path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(model=shallow_path, forget=False)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


def test_a_program_that_never_closes_its_engine_exits_all_the_same(shallow_path: str) -> None:
    code = SCRIPT.format(model=shallow_path, forget=True).replace("with Engine.load(", "if engine := Engine.load(")
    code = code.replace(" as engine:", ":")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "forgot to close\n")
