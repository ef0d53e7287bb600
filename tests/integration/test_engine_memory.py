"""The continuous engine when a step of the model does not fit the memory."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_engine import active, another_engine, ask, chat, eventually, said

from promptmill.errors import EngineError
from promptmill.protocol import GenerationRequest
from promptmill_worker import batching, out_of_memory
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.engine import EngineDiedError

pytestmark = pytest.mark.model

#: A word of one token that is in no other prompt.
TOO_LARGE = " elephant"

#: What is done with a step's inputs before the model gets them.
Inspect = Callable[[list[int], int], None]


@pytest.fixture(scope="session")
def checkpoint(shallow_checkpoint: Checkpoint) -> Checkpoint:
    """What memory runs out of is the same for a quick model."""
    return shallow_checkpoint


@pytest.fixture(scope="session")
def engine(shallow_engine: ContinuousEngine) -> ContinuousEngine:
    """An undisturbed engine on it."""
    return shallow_engine


@contextmanager
def inspected(checkpoint: Checkpoint, inspect: Inspect) -> Iterator[None]:
    """Calls ``inspect`` with the tokens and the number of requests of every step."""

    def before(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        inspect(inputs["input_ids"].flatten().tolist(), inputs["cu_seq_lens_q"].numel() - 1)

    handle = checkpoint.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def room_for(most_requests: int, seen: list[int] | None = None) -> Inspect:
    """A memory that holds so many requests; the numbers that fit go to ``seen``."""

    def inspect(_: list[int], requests: int) -> None:
        if requests > most_requests:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if seen is not None:
            seen.append(requests)

    return inspect


def no_room_for(checkpoint: Checkpoint, word: str) -> Inspect:
    """A memory that no step with ``word`` fits."""
    (token_id,) = checkpoint.tokenizer(word)["input_ids"]

    def inspect(input_ids: list[int], _: int) -> None:
        if token_id in input_ids:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    return inspect


@pytest.fixture(scope="module")
def requests(questions: list[str]) -> list[GenerationRequest]:
    """Twelve prompts: greedy, sampled, with a stop string, several choices, penalties, log-probabilities."""
    mixes: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "stop": "the"},
        {"seed": 7, "n": 2},
        {"seed": 8, "frequency_penalty": 1.0, "logprobs": 1},
    ]
    return [chat(questions[i][:60], max_tokens=6 + i % 5, **mixes[i % 4 if i > 4 else 0]) for i in range(12)]


@pytest.fixture(scope="module")
def expected(engine: ContinuousEngine, requests: list[GenerationRequest]) -> list[Any]:
    """What an undisturbed engine says."""
    return [said(future.result()) for future in [engine.submit(request) for request in requests]]


def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits_and_every_text_stays_the_same(
    checkpoint: Checkpoint,
    requests: list[GenerationRequest],
    expected: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []
    with another_engine(checkpoint) as engine, inspected(checkpoint, room_for(5, seen)):
        assert engine.info.max_batch == 64
        futures = [engine.submit(request) for request in requests]
        assert [said(future.result(timeout=120)) for future in futures] == expected
        assert engine.info.max_batch <= 5
        assert engine.info.max_batch in seen
        eventually(lambda: engine.running == 0)
        assert engine.failure is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings
    numbers = [[int(number) for number in re.findall(r"\d+", warning)] for warning in warnings]
    assert numbers[-1][2] == engine.info.max_batch
    assert all(fewer <= requests / 2 for requests, _, fewer, _ in numbers)


def test_failures_in_the_middle_of_the_texts_lose_none_of_them_where_the_cache_is_short_too(
    checkpoint: Checkpoint,
    requests: list[GenerationRequest],
    expected: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "SENSIBLE_REQUEST_TOKENS", 16)
    steps, failed = itertools.count(1), []

    def inspect(_: list[int], requests: int) -> None:
        if next(steps) % 5 == 0 and requests > 1:
            failed.append(requests)
            raise MemoryError

    with another_engine(checkpoint, max_model_len=96, max_batch=6) as engine, inspected(checkpoint, inspect):
        futures = [engine.submit(request) for request in requests]
        results = [future.result(timeout=120) for future in futures]
    assert failed
    assert [said(result) for result in results] == expected
    assert all(0 < result.timings.time_to_first_token_s <= result.timings.generation_s for result in results)


def test_a_prompt_that_does_not_fit_even_alone_fails_alone_with_advice(
    checkpoint: Checkpoint, requests: list[GenerationRequest], expected: list[Any]
) -> None:
    with another_engine(checkpoint) as engine, inspected(checkpoint, no_room_for(checkpoint, TOO_LARGE)):
        futures = [engine.submit(request) for request in requests]
        large = ask("Once upon a time an" + TOO_LARGE, max_tokens=50, n=2)
        futures.insert(6, engine.submit(large))
        with pytest.raises(EngineError, match=r"6 tokens with up to 50 .* max_model_len or max_batch") as caught:
            futures.pop(6).result(timeout=120)
        assert "elephant" not in str(caught.value)
        assert [said(future.result(timeout=120)) for future in futures] == expected
        assert engine.info.max_batch == 64
        eventually(lambda: (engine.running, active(engine)) == (0, 0))
        assert engine.failure is None


def test_the_newest_is_tried_first_so_the_others_need_not_end_before_a_prompt_is_found_too_large(
    checkpoint: Checkpoint,
) -> None:
    with another_engine(checkpoint) as engine, inspected(checkpoint, no_room_for(checkpoint, TOO_LARGE)):
        futures = [engine.submit(ask("Once upon a time", max_tokens=4_000, ignore_eos=True)) for _ in range(6)]
        eventually(lambda: engine.steps > 2)
        with pytest.raises(EngineError, match="even alone"):
            engine.submit(ask("Once upon a time an" + TOO_LARGE)).result(timeout=60)
        assert engine.steps < 1_000
        assert [future.cancel() for future in futures] == [True] * 6
        eventually(lambda: active(engine) == 0)


def test_a_long_prompt_is_read_in_smaller_pieces_before_it_is_given_up(
    checkpoint: Checkpoint, engine: ContinuousEngine
) -> None:
    request = ask("word " * 400, max_tokens=4, temperature=0)

    def inspect(input_ids: list[int], _: int) -> None:
        if len(input_ids) > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")

    whole = engine.submit(request).result()
    with another_engine(checkpoint) as small, inspected(checkpoint, inspect):
        assert small.submit(request).result(timeout=120).choices == whole.choices


def test_a_request_that_the_cache_cant_hold_even_alone_fails_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "SENSIBLE_REQUEST_TOKENS", 16)
    with another_engine(checkpoint, max_model_len=32, max_batch=2) as engine:
        monkeypatch.setattr(engine._admission, "_limit_tokens", 10_000)
        large = engine.submit(ask("Once upon a time", max_tokens=900, ignore_eos=True))
        neighbour = engine.submit(ask("Once upon a time", max_tokens=4, ignore_eos=True))
        with pytest.raises(EngineError, match="even alone"):
            large.result(timeout=120)
        assert neighbour.result(timeout=120).usage.completion_tokens == 4


def test_a_request_cancelled_while_the_batch_is_made_smaller_stays_cancelled(checkpoint: Checkpoint) -> None:
    failing, cancelled = threading.Event(), threading.Event()

    def inspect(_: list[int], requests: int) -> None:
        if requests > 1:
            failing.set()
            cancelled.wait(60)
            raise torch.OutOfMemoryError("CUDA out of memory")

    with another_engine(checkpoint) as engine, inspected(checkpoint, inspect):
        futures = [engine.submit(ask("Once upon a time", max_tokens=5, ignore_eos=True)) for _ in range(4)]
        assert failing.wait(60)
        assert futures[1].cancel()
        cancelled.set()
        rest = [futures[0], *futures[2:]]
        assert [future.result(timeout=120).usage.completion_tokens for future in rest] == [5, 5, 5]
        with pytest.raises(CancelledError):
            futures[1].result()
        eventually(lambda: active(engine) == 0)


def test_the_failed_steps_tensors_are_gone_before_memory_is_given_back(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    gone: list[bool] = []
    monkeypatch.setattr(out_of_memory, "give_memory_back", lambda: gone.append(left[0]() is None))

    def inspect(_: list[int], __: int) -> None:
        activations = torch.zeros(1_000)
        if not left:
            left.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

    with another_engine(checkpoint) as engine, inspected(checkpoint, inspect):
        engine.submit(ask("Once upon a time", max_tokens=2)).exception(timeout=60)
        assert gone == [True]


def test_the_batch_grows_again_while_memory_suffices(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "GROWS_AFTER_STEPS", 2)
    room = [2]

    def inspect(_: list[int], requests: int) -> None:
        if requests > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with another_engine(checkpoint) as engine, inspected(checkpoint, inspect):
        processor = engine._manager.batch_processor
        most_tokens = processor.max_batch_tokens
        futures = [engine.submit(ask("Once upon a time", max_tokens=4_000, ignore_eos=True)) for _ in range(8)]
        eventually(lambda: engine.info.max_batch <= 2)
        assert processor.max_batch_tokens < most_tokens
        room[0] = 64
        eventually(lambda: engine.info.max_batch == 64)
        assert processor.max_batch_tokens == most_tokens
        for future in futures:
            assert future.cancel()
        eventually(lambda: active(engine) == 0)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("shape")])
def test_any_other_error_still_ends_the_engine(checkpoint: Checkpoint, error: Exception) -> None:
    def inspect(_: list[int], __: int) -> None:
        raise error

    with another_engine(checkpoint) as engine, inspected(checkpoint, inspect):
        future = engine.submit(ask("Once upon a time"))
        with pytest.raises(EngineDiedError, match=type(error).__name__):
            future.result(timeout=60)
        assert engine.failure is error


def test_memory_that_runs_out_while_a_step_is_handed_out_ends_the_engine(checkpoint: Checkpoint) -> None:
    with another_engine(checkpoint) as engine:

        def fail(*_: Any) -> None:
            raise MemoryError

        engine._manager.output_router.deliver_batch = fail
        with pytest.raises(EngineDiedError, match="MemoryError"):
            engine.submit(ask("Once upon a time")).result(timeout=60)
