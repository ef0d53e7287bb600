"""Which models can run in transformers' continuous batching, by what they say of themselves."""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR

from promptmill.errors import ModelLoadError
from promptmill_worker.placement import why_not_by_placement

__all__ = ["NotContinuousError", "why_not_continuous"]


class NotContinuousError(ModelLoadError):
    """A model that was loaded can't run in the continuous batch."""


def why_not_continuous(model: Any) -> str | None:
    """Why a model can't run in the continuous batch, to be read after "it can't, because"; None if it may.

    Not all can be seen beforehand: what transformers then refuses is told by ``prepared_manager``.
    """
    if getattr(model, "_is_stateful", False):
        return "it keeps a state instead of keys and values, and the cache of the running batch has no place for it"
    config = model.config.get_text_config()
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - ATTN_TYPE_TO_ALLOCATOR.keys())
    if foreign:
        return f"it has layers ({', '.join(foreign)}) that the cache of the running batch has no place for"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps the scores of its attention, which attention over a cache in pages silently leaves out"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention can't be replaced by one over a cache in pages"
    return why_not_by_placement(model)
