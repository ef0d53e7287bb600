"""Models with attention of many kinds in the running batch, against transformers' own generate()."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from small_models import ATTENTION, SHAPE, by_generate, save, settings
from test_engine import ask
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.generation.continuous_batching import continuous_api

from promptmill_worker.checkpoint import load_checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.fallback import engine_for

#: Shorter than most prompts here.
WINDOW_TOKENS = 16

KINDS: dict[str, PreTrainedConfig] = {
    "heads that share keys": LlamaConfig(**SHAPE, **ATTENTION),
    "one key head for all": LlamaConfig(**SHAPE, **{**ATTENTION, "num_key_value_heads": 1}),
    "keys for each head": Qwen3Config(**SHAPE, **{**ATTENTION, "num_key_value_heads": 4}, head_dim=16),
    "a sliding window": MistralConfig(**SHAPE, **ATTENTION, sliding_window=WINDOW_TOKENS),
    "windows in most layers": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 3},
        **ATTENTION,
        head_dim=8,
        sliding_window=WINDOW_TOKENS,
        sliding_window_pattern=3,
    ),
    "a window that is in the mask alone": PhimoeConfig(
        **SHAPE, **ATTENTION, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW_TOKENS
    ),
    "attention sinks and windows": GptOssConfig(
        **SHAPE, **ATTENTION, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW_TOKENS
    ),
}


#: Half of its layers have windows, and all of them cap the scores.
GEMMA_2 = Gemma2Config(**SHAPE, **ATTENTION, head_dim=8, sliding_window=WINDOW_TOKENS, attn_logit_softcapping=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_equal_generate_over_random_lengths(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    checkpoint = load_checkpoint(settings(save(KINDS[kind], tmp_path)))
    shared = "".join(chance.choices("abcdefgh ", k=50))
    prompts = ["".join(chance.choices("abcdefgh ", k=chance.choice([1, 7, 15, 16, 17, 40, 90]))) for _ in range(8)]
    prompts += [shared + "x", shared + "yz", "".join(chance.choices("abcdefgh ", k=700))]
    lengths = [chance.randint(1, 30) for _ in prompts]
    expected = [by_generate(checkpoint, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    with ContinuousEngine(checkpoint, settings(kind, max_model_len=1024)) as engine:
        asked = zip(prompts, lengths, strict=True)
        futures = [engine.submit(ask(prompt, max_tokens=length, temperature=0)) for prompt, length in asked]
        assert [future.result(timeout=120).text for future in futures] == expected
        assert engine.failure is None


def test_scores_that_are_capped_are_no_matter_for_pages_and_right_all_the_same(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(settings(save(GEMMA_2, tmp_path)))
    prompts = ["abcdefgh " * 4, "hgfedcba", "aabbccddeeffgghh" * 2]
    expected = [by_generate(checkpoint, prompt, 20) for prompt in prompts]
    with engine_for(checkpoint, settings("gemma")) as engine:
        assert (engine.info.engine, "caps" in engine.info.reason) == ("static batches", True)
        futures = [engine.submit(ask(prompt, max_tokens=20, temperature=0)) for prompt in prompts]
        assert [future.result(timeout=120).text for future in futures] == expected


def test_a_model_on_a_cpu_takes_no_flash_attention_where_a_gpu_would_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (2, 3):
        monkeypatch.setattr(continuous_api, f"is_flash_attn_{version}_available", lambda **_: True)
    checkpoint = load_checkpoint(settings(save(KINDS["heads that share keys"], tmp_path)))
    with engine_for(checkpoint, settings("llama")) as engine:
        assert (engine.info.engine, engine.info.attention) == ("transformers", "sdpa")
        text = engine.submit(ask("abcdefgh", max_tokens=10, temperature=0)).result(timeout=120).text
    assert text == by_generate(checkpoint, "abcdefgh", 10)
