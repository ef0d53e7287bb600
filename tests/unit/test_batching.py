"""Why a model that is loaded can't be run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptmill.errors import ModelLoadError
from promptmill_worker import cache_size
from promptmill_worker.batching import prepared_manager
from promptmill_worker.settings import EngineSettings

SMALL = SimpleNamespace(max_position_embeddings=2048, num_attention_heads=4, num_hidden_layers=2, hidden_size=64)


def why_it_cannot_run(error: Exception) -> str:
    """What is said of a model whose continuous batching fails with ``error`` when it is set up."""

    def fail(*_: Any) -> None:
        raise error

    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SMALL),
        dtype=torch.float32,
        device=torch.device("cpu"),
        init_continuous_batching=fail,
    )
    with pytest.raises(ModelLoadError) as caught:
        prepared_manager(SimpleNamespace(model=model), EngineSettings.read(model="some-model"), SimpleNamespace())
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too large"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_cache_that_does_not_fit_says_what_to_make_smaller(error: Exception) -> None:
    message = why_it_cannot_run(error)
    assert "'some-model'" in message
    assert "2,048 tokens does not fit" in message
    assert "max_model_len or max_batch" in message


@pytest.mark.parametrize(
    "error", [NotImplementedError("no paged attention"), RuntimeError("odd shape"), ValueError("x")]
)
def test_any_other_failure_is_not_called_one_of_memory(error: Exception) -> None:
    message = why_it_cannot_run(error)
    assert "can't run in transformers' continuous batching" in message
    assert "memory" not in message


@pytest.mark.parametrize(
    ("free", "tokens"),
    [(None, 1_000_000), (8 * 2**40, 1_000_000), (4 * 2**30, 699_050), (2**20, 256)],
    ids=["unknown", "plenty", "4 GiB", "next to nothing"],
)
def test_the_cache_takes_half_of_the_free_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int | None, tokens: int
) -> None:
    monkeypatch.setattr(cache_size, "free_bytes", lambda _: free)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SMALL), device=torch.device("cpu"), dtype=torch.float32
    )
    # 2 layers of keys and values of 4 heads of 16 numbers, and 512 numbers of the mask.
    assert cache_size.bytes_of_token(model, 512) == 4 * (2 * 2 * 4 * 16 + 512)
    assert cache_size.cache_tokens(model, 1_000_000, 512) == tokens
