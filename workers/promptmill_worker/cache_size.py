"""How many tokens' keys and values the cache is to hold, where we choose it: on a CPU and on MPS."""

from __future__ import annotations

import logging
from typing import Any

from promptmill_worker.free_memory import free_bytes

__all__ = ["bytes_of_token", "cache_tokens"]

log = logging.getLogger(__name__)

#: Share of the free memory that the cache may take; the steps need some, and so may other programs.
CACHE_SHARE = 0.5

#: A cache smaller than this is of no use, in tokens: rather than making one, the worker says that memory is short.
SMALLEST_TOKENS = 256


def cache_tokens(model: Any, useful_tokens: int, mask_numbers: int) -> int:
    """As many as are useful, or as many as the free memory allows.

    Args:
        model: Loaded, on its device.
        useful_tokens: More would lie idle.
        mask_numbers: See ``bytes_of_token``.
    """
    free = free_bytes(model.device)
    if free is None:
        return useful_tokens
    fitting = max(SMALLEST_TOKENS, int(free * CACHE_SHARE / bytes_of_token(model, mask_numbers)))
    if fitting < useful_tokens:
        log.warning(
            "memory suffices for a cache of %s tokens; %s would be useful", f"{fitting:,}", f"{useful_tokens:,}"
        )
    return min(useful_tokens, fitting)


def bytes_of_token(model: Any, mask_numbers: int) -> int:
    """What a token in the cache takes, in bytes: its keys and values in all layers, and its part of the mask.

    Args:
        model: Loaded.
        mask_numbers: How many numbers of the mask that transformers keeps there are for each token: one for each token
            of the largest step, as often as a token may be read in it.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    numbers = 2 * config.num_hidden_layers * key_heads * head_size + mask_numbers
    return int(numbers * model.dtype.itemsize)
