"""The engine for models that keep a state: batches of ``generate()``, on small models of random weights."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import ATTENTION, SHAPE, by_generate, save, settings
from test_engine import ask, eventually
from transformers import (
    DeepseekV3Config,
    GPTNeoXConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from promptmill import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.errors import EngineError, ModelLoadError
from promptmill.local_worker import LocalWorker
from promptmill_worker import prefill_progress
from promptmill_worker.card import card
from promptmill_worker.checkpoint import Checkpoint, load_checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.continuous_support import why_not_continuous
from promptmill_worker.engine import Engine, EngineDiedError
from promptmill_worker.fallback import engine_for
from promptmill_worker.padding import padding_is_exact
from promptmill_worker.static import StaticEngine

MAMBA = MambaConfig(**SHAPE, state_size=4)
MAMBA_2 = Mamba2Config(**SHAPE, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=8)
#: State and attention in turn.
JAMBA = JambaConfig(
    **SHAPE, **ATTENTION, attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False
)
LLAMA = LlamaConfig(**SHAPE, **ATTENTION)
#: Reads its padding.
RECURRENT_GEMMA = RecurrentGemmaConfig(
    **{**SHAPE, "num_hidden_layers": 3}, num_attention_heads=4, lru_width=32, intermediate_size=64
)


@pytest.fixture(scope="module")
def mamba_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small state-space model."""
    return save(MAMBA, tmp_path_factory.mktemp("mamba"))


@pytest.fixture(scope="module")
def mamba(mamba_path: str) -> Checkpoint:
    """That model, loaded."""
    return load_checkpoint(settings(mamba_path))


@pytest.fixture(scope="module")
def engine(mamba: Checkpoint) -> Iterator[Engine]:
    """An engine on it."""
    with engine_for(mamba, settings("mamba")) as engine:
        yield engine


@contextmanager
def at_each_step(checkpoint: Checkpoint, inspect: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Calls ``inspect`` with the token ids of every step, of shape (rows, tokens), before the model gets them."""
    handle = checkpoint.model.register_forward_pre_hook(
        lambda _, __, inputs: inspect(inputs["input_ids"]), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


class Steps:
    """Holds an engine before each step until the test lets it go on.

    It begins with a request of its own, so that what the test submits then is in one batch.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._go = threading.Semaphore(0)

    def __call__(self, input_ids: torch.Tensor) -> None:
        self.shapes.append(tuple(input_ids.shape))
        self._go.acquire(timeout=60)

    def begin(self, engine: Engine) -> None:
        """Has the engine wait in a batch of one that is over after one step."""
        engine.submit(ask("x", max_tokens=1))
        eventually(lambda: self.shapes)

    @property
    def rows(self) -> list[int]:
        """How many rows each step had, after the first."""
        return [shape[0] for shape in self.shapes[1:]]

    def let(self, number: int) -> None:
        """Lets so many steps pass, and waits until the next one is about to begin."""
        for _ in range(number):
            seen = len(self.shapes)
            self._go.release()
            eventually(lambda seen=seen: len(self.shapes) > seen)

    def let_all(self) -> None:
        """Holds it no more."""
        self._go.release(100_000)


@pytest.mark.parametrize("config", [MAMBA, MAMBA_2, JAMBA, RECURRENT_GEMMA], ids=lambda config: config.model_type)
def test_greedy_texts_of_a_batch_equal_generate(config: PreTrainedConfig, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(settings(save(config, tmp_path)))
    prompts = ["Once", "Hello, world", "What is the capital of France?", "One, two, three, four", "Twice"]
    assert padding_is_exact(checkpoint.model, 0) == (config is not RECURRENT_GEMMA)
    with engine_for(checkpoint, settings("tiny")) as engine:
        assert isinstance(engine, StaticEngine)
        futures = [engine.submit(ask(prompt, temperature=0, max_tokens=9 + i)) for i, prompt in enumerate(prompts)]
        texts = [future.result().text for future in futures]
    assert texts == [by_generate(checkpoint, prompt, 9 + i) for i, prompt in enumerate(prompts)]
    assert len(set(texts)) == len(prompts)


def test_only_prompts_of_one_length_share_a_batch_where_padding_changes_the_text(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(settings(save(RECURRENT_GEMMA, tmp_path)))
    steps = Steps()
    with engine_for(checkpoint, settings("tiny")) as engine, at_each_step(checkpoint, steps):
        steps.begin(engine)
        futures = [engine.submit(ask(prompt, max_tokens=3)) for prompt in ("abc", "four", "cba", "bca")]
        steps.let_all()
        for future in futures:
            future.result()
    assert [shape for shape in steps.shapes if shape[1] > 1] == [(3, 3), (1, 4)]


def test_mixed_requests_in_one_batch_equal_each_of_them_alone(engine: Engine) -> None:
    mixes: list[dict[str, Any]] = [
        {"temperature": 0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.8},
        {"seed": 3, "top_k": 20, "temperature": 0.7},
        {"seed": 4, "min_p": 0.05, "temperature": 1.5},
        {"seed": 6, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"seed": 7, "logit_bias": {3: 2.0}, "min_tokens": 5},
        {"seed": 5, "top_k": 40, "top_p": 0.9, "n": 2},
    ]
    requests = [ask("x" * (1 + index), max_tokens=12 + index, **mix) for index, mix in enumerate(mixes)]
    together = [future.result() for future in [engine.submit(request) for request in requests]]
    for request, result in zip(requests, together, strict=True):
        assert engine.submit(request).result().choices == result.choices, request.sampling
    first, second = together[-1].choices
    assert first.text != second.text


def test_a_draw_is_the_continuous_engines(tmp_path: Path) -> None:
    path = save(LLAMA, tmp_path)
    requests = [ask("Once upon", max_tokens=20, seed=seed, top_p=0.9) for seed in range(3)]
    with engine_for(load_checkpoint(settings(path)), settings(path)) as continuous:
        assert isinstance(continuous, ContinuousEngine)
        expected = [future.result().text for future in [continuous.submit(request) for request in requests]]
    with StaticEngine(load_checkpoint(settings(path)), settings(path), "a test") as static:
        assert [future.result().text for future in [static.submit(request) for request in requests]] == expected


def test_a_text_ends_at_its_stop_string_or_token_and_tells_what_it_used(engine: Engine, mamba: Checkpoint) -> None:
    whole = engine.submit(ask("Once", max_tokens=30, temperature=0)).result()
    assert (whole.finish_reason, whole.usage.completion_tokens, whole.usage.prompt_tokens) == ("length", 30, 4)
    assert 0 < whole.timings.time_to_first_token_s <= whole.timings.generation_s
    stop = whole.text[8:11]
    cut = engine.submit(ask("Once", max_tokens=30, temperature=0, stop=stop)).result()
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    kept = engine.submit(ask("Once", max_tokens=30, temperature=0, stop=stop, include_stop_str_in_output=True))
    assert kept.result().text == cut.text + stop
    token = mamba.tokenizer(whole.text[5])["input_ids"][0]
    ended = engine.submit(ask("Once", max_tokens=30, temperature=0, stop_token_ids=[token])).result()
    assert (ended.text, ended.finish_reason) == (whole.text[: whole.text.index(whole.text[5])], "stop")


def test_what_a_model_wants_by_default_is_added_to_no_request(mamba: Checkpoint, mamba_path: str) -> None:
    checkpoint = load_checkpoint(settings(mamba_path))
    checkpoint.model.generation_config.repetition_penalty = 3.0
    with engine_for(checkpoint, settings("mamba")) as engine:
        assert engine.submit(ask("Once", max_tokens=30, temperature=0)).result().text == by_generate(mamba, "Once", 30)


def test_what_the_history_decides_is_the_continuous_engines_too(tmp_path: Path) -> None:
    path = save(LLAMA, tmp_path)
    asked: list[dict[str, Any]] = [
        {"temperature": 0, "repetition_penalty": 1.4, "logprobs": 2},
        {"seed": 1, "presence_penalty": 1.0, "frequency_penalty": 0.3, "logprobs": 0},
        {"temperature": 0, "logit_bias": {4: 3.0}, "min_tokens": 4},
        {"temperature": 0, "window_tokens": 4, "stride_tokens": 3},
    ]
    requests = [ask("Once upon", max_tokens=12, **parameters) for parameters in asked]

    def said(engine: Engine) -> list[Any]:
        choices = [future.result().choices for future in [engine.submit(request) for request in requests]]
        return [
            [(choice.text, choice.window, [entry.token_id for entry in choice.logprobs or ()]) for choice in of_request]
            for of_request in choices
        ]

    with engine_for(load_checkpoint(settings(path)), settings(path)) as continuous:
        expected = said(continuous)
    with StaticEngine(load_checkpoint(settings(path)), settings(path), "a test") as static:
        assert said(static) == expected
    assert all(entries for _, _, entries in (*expected[0], *expected[1]))
    assert len(expected[3]) > 1


@pytest.fixture
def held(mamba: Checkpoint, engine: Engine) -> Iterator[Steps]:
    """The engine, held before each step."""
    steps = Steps()
    with at_each_step(mamba, steps):
        steps.begin(engine)
        yield steps
        steps.let_all()
        eventually(lambda: engine.running == 0)


def test_a_row_that_ends_resolves_its_request_while_the_others_run_and_who_comes_later_is_in_the_next_batch(
    engine: Engine, held: Steps
) -> None:
    short, long = (engine.submit(ask("Once", max_tokens=number, temperature=0)) for number in (2, 6))
    held.let(1)
    late = engine.submit(ask("Once", max_tokens=2, temperature=0))
    held.let(3)
    assert short.result(timeout=60).usage.completion_tokens == 2
    assert not long.done()
    assert len(engine.partial_text(long)) == 3
    assert engine.partial_text(late) == ""
    held.let_all()
    assert late.result(timeout=60).text == short.result().text == long.result().text[:2]
    assert held.rows == [2] * 6 + [1] * 2


def test_a_cancelled_request_ends_its_batch_within_a_step(engine: Engine, held: Steps) -> None:
    cancelled = engine.submit(ask("Once", max_tokens=1_000, temperature=0, n=2))
    held.let(3)
    late = engine.submit(ask("Once", max_tokens=3, temperature=0))
    assert cancelled.cancel()
    assert engine.running == 1
    held.let_all()
    assert late.result(timeout=60).usage.completion_tokens == 3
    assert held.rows == [2] * 3 + [1] * 3


def test_pieces_of_a_text_are_told_while_it_grows(engine: Engine) -> None:
    pieces: dict[int, list[str]] = {0: [], 1: []}
    request = ask("Once", max_tokens=20, seed=7, n=2)
    result = engine.submit(request, lambda choice, text: pieces[choice].append(text)).result()
    assert ["".join(pieces[choice]) for choice in (0, 1)] == [choice.text for choice in result.choices]
    assert min(map(len, pieces.values())) > 10
    assert engine.submit(request).result().choices == result.choices


class Room:
    """A memory that holds so many rows, and no step with ``token_id``; now and then, with ``fails_at``, none."""

    def __init__(self, rows: int, token_id: int | None = None, fails_at: int = 0) -> None:
        self.failures = 0
        self._rows, self._token_id, self._fails_at, self._steps = rows, token_id, fails_at, 0

    def __call__(self, input_ids: torch.Tensor) -> None:
        self._steps += 1
        in_vain = self._fails_at and self._steps % self._fails_at == 0 and input_ids.size(0) > 1
        if in_vain or input_ids.size(0) > self._rows or (self._token_id is not None and self._token_id in input_ids):
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_batch_that_does_not_fit_is_halved_and_no_token_is_lost_or_drawn_again(mamba: Checkpoint) -> None:
    mixes: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 7, "n": 2}, {"seed": 8, "top_p": 0.9}]
    requests = [ask("Once"[: 1 + i % 4], max_tokens=8 + i, **mixes[i % 3]) for i in range(9)]
    with engine_for(mamba, settings("mamba")) as engine:
        expected = [future.result().choices for future in [engine.submit(request) for request in requests]]
        for room in (Room(3), Room(8, fails_at=5)):
            pieces: list[str] = []
            with at_each_step(mamba, room):
                futures = [engine.submit(request) for request in requests[1:]]
                told = engine.submit(requests[0], lambda _, text, pieces=pieces: pieces.append(text))
                assert [future.result().choices for future in [told, *futures]] == expected
            assert room.failures
            assert "".join(pieces) == expected[0][0].text
            assert engine.info.max_batch < 8
            assert engine.failure is None


def test_a_prompt_that_does_not_fit_even_alone_fails_alone_with_advice(mamba: Checkpoint) -> None:
    (token_id,) = mamba.tokenizer("~")["input_ids"]
    with engine_for(mamba, settings("mamba")) as engine, at_each_step(mamba, Room(8, token_id)):
        futures = [engine.submit(ask(f"Once {i}", max_tokens=3, top_k=1)) for i in range(5)]
        large = engine.submit(ask("Once ~", max_tokens=50))
        with pytest.raises(EngineError, match=r"6 tokens with up to 50 .* does not fit .* shorten it"):
            large.result()
        assert all(future.result().usage.completion_tokens == 3 for future in futures)
        assert engine.info.max_batch == 8


def test_an_engine_whose_step_fails_dies_and_hands_everything_back(mamba: Checkpoint) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("device-side assert triggered")

    engine = engine_for(mamba, settings("mamba"))
    with at_each_step(mamba, fail):
        futures = [engine.submit(ask("Once")) for _ in range(3)]
        for future in futures:
            with pytest.raises(EngineDiedError, match="RuntimeError"):
                future.result()
    assert isinstance(engine.failure, RuntimeError)
    with pytest.raises(EngineDiedError):
        engine.submit(ask("Once")).result()
    eventually(lambda: engine.running == 0)
    engine.close()


def test_closing_ends_what_runs_and_what_waits(mamba: Checkpoint) -> None:
    before = threading.active_count()
    engine = engine_for(mamba, settings("mamba", max_batch=1))
    futures = [engine.submit(ask("Once", max_tokens=400, ignore_eos=True)) for _ in range(3)]
    eventually(lambda: engine.steps > 2)
    engine.close()
    engine.close()
    for future in [*futures, engine.submit(ask("Once"))]:
        with pytest.raises(EngineDiedError, match="closed"):
            future.result()
    assert (engine.running, engine.failure) == (0, None)
    assert threading.active_count() == before


def test_a_model_that_the_continuous_batch_refuses_only_when_it_is_tried_falls_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load_checkpoint(settings(save(LLAMA, tmp_path)))
    expected = by_generate(checkpoint, "Once", 12)

    def refuse(model: Any, *_: Any) -> None:
        model.set_attn_implementation("paged|eager")
        raise ValueError("it has no pages")

    monkeypatch.setattr(type(checkpoint.model), "init_continuous_batching", refuse)
    with engine_for(checkpoint, settings("llama")) as engine:
        assert isinstance(engine, StaticEngine)
        assert "it has no pages" in card(engine.info)
        assert engine.submit(ask("Once", max_tokens=12, temperature=0)).result().text == expected
    assert "static batches" in caplog.text


#: Models that say they are made for the running batch, and are not: each breaks its loop at the first request.
BREAKING = [
    OPTConfig(**SHAPE, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32),
    GPTNeoXConfig(**SHAPE, intermediate_size=64, num_attention_heads=4),
    DeepseekV3Config(
        **{**SHAPE, **ATTENTION, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
]


@pytest.mark.parametrize("config", BREAKING, ids=lambda config: config.model_type)
def test_a_model_that_breaks_the_continuous_batch_only_at_its_first_request_falls_back_too(
    config: PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(settings(save(config, tmp_path)))
    assert why_not_continuous(checkpoint.model) is None
    written = BufferingHandler(100)
    monkeypatch.setattr(logging.getLogger("ContinuousBatchingLogger"), "handlers", [written])
    prompts = ["Once", "Hello, world"]
    expected = [by_generate(checkpoint, prompt, 12) for prompt in prompts]
    with engine_for(checkpoint, settings("tiny")) as engine:
        assert (engine.info.engine, "transformers refuses it" in engine.info.reason) == ("static batches", True)
        futures = [engine.submit(ask(prompt, max_tokens=12, temperature=0)) for prompt in prompts]
        assert [future.result(timeout=60).text for future in futures] == expected
    assert not written.buffer


def test_a_worker_serves_a_state_space_model_and_its_card_says_how(
    embedded_broker: EmbeddedBroker, mamba: Checkpoint, mamba_path: str, tmp_path: Path
) -> None:
    url, log = embedded_broker.url, tmp_path / "worker.log"
    options = ["--model", mamba_path, "--served-name", "mamba", "--dtype", "float32", "--measure-s", "0.2"]
    with LocalWorker(url, options, log) as worker, Client(url, model="mamba") as client:
        worker.wait_until_ready(client)
        tasks = [client.submit(prompt, max_tokens=9, temperature=0) for prompt in ("Once", "Hello", "Twice upon")]
        texts = [task.result(timeout_s=120).text for task in tasks]
        assert texts == [by_generate(mamba, prompt, 9) for prompt in ("Once", "Hello", "Twice upon")]
        assert "".join(client.stream("Once", max_tokens=9, temperature=0)) == texts[0]
    said = log.read_text()
    assert "static batches, on cpu" in said
    assert "it keeps a state instead of keys and values" in said
    assert re.search(r"[1-9][\d,.]* tokens/s alone, [1-9][\d,.]* in a full batch", said)


def test_a_program_that_forgets_to_close_ends_all_the_same(mamba_path: str) -> None:
    program = f"""
import time
from promptmill.protocol import GenerationRequest
from promptmill_worker.engine import Engine
engine = Engine.load({mamba_path!r})
engine.submit(GenerationRequest.of("Once", max_tokens=10_000, ignore_eos=True))
while engine.steps < 3:
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_model_that_can_not_generate_at_all_is_named(mamba: Checkpoint) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("no kernel for this device")

    with at_each_step(mamba, fail), pytest.raises(ModelLoadError, match=r"'mamba' is loaded, but .* no kernel"):
        engine_for(mamba, settings("mamba"))


def test_a_long_step_shows_progress_while_its_layers_do(mamba: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_progress, "SHOWN_EVERY_S", 0.0)
    with engine_for(mamba, settings("mamba")) as engine:
        engine.submit(ask("Once", max_tokens=1)).result()
        assert engine.steps == 1 + mamba.model.config.num_hidden_layers
