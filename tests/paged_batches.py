"""Steps of a continuous batch, as an attention function meets them."""

from __future__ import annotations

import itertools
from typing import Any

import torch

HEADS, KEY_HEADS, SIZE = 6, 2, 16


def layer(**attributes: Any) -> torch.nn.Module:
    """What an attention layer tells an attention function."""
    module = torch.nn.Module()
    for name, value in {"num_key_value_groups": HEADS // KEY_HEADS, "is_causal": True, **attributes}.items():
        setattr(module, name, value)
    return module


def batch(lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """A batch of (new tokens, tokens with the cached ones) for each request, masked as the engine masks it."""
    torch.manual_seed(1)
    new, total = [q for q, _ in lengths], [k for _, k in lengths]
    mask = torch.full((1, 1, sum(new), sum(total)), torch.finfo(torch.float32).min)
    starts_q, starts_k = ([0, *itertools.accumulate(of_each)] for of_each in (new, total))
    for (q, k), row, column in zip(lengths, starts_q, starts_k, strict=False):
        for i in range(q):
            mask[..., row + i, column : column + k - q + i + 1] = 0.0
    return {
        "query": torch.randn(1, HEADS, sum(new), SIZE),
        # As they come out of the cache: tokens first in memory.
        "key": torch.randn(sum(total), KEY_HEADS, SIZE).transpose(0, 1).unsqueeze(0),
        "value": torch.randn(sum(total), KEY_HEADS, SIZE).transpose(0, 1).unsqueeze(0),
        "attention_mask": mask,
        "cu_seq_lens_q": torch.tensor(starts_q, dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor(starts_k, dtype=torch.int32),
        "is_causal": False,
    }
