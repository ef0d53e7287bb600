"""Why a model that is loaded can't be run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptmill.errors import ModelLoadError
from promptmill_worker.batching import prepared_manager
from promptmill_worker.settings import EngineSettings


def why_it_cannot_run(error: Exception) -> str:
    """What is said of a model whose continuous batching fails with ``error`` when it is set up."""

    def fail(*_: Any) -> None:
        raise error

    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=2048)),
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
