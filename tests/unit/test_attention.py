"""Attention request by request equals transformers' dense block."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from paged_batches import HEADS, KEY_HEADS, SIZE, batch, layer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from promptmill_worker import attention
from promptmill_worker.attention import attend_by_request


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_dense_block_over_random_lengths(seed: int) -> None:
    draw = random.Random(seed)
    lengths = []
    for _ in range(draw.randint(1, 12)):
        new = draw.choice([1, 1, 1, draw.randint(2, 40)])
        lengths.append((new, new + draw.choice([0, draw.randint(0, 90)])))
    given = batch(lengths)
    scaling = draw.choice([None, 0.3])
    ours, _ = attend_by_request(layer(), **given, scaling=scaling)
    dense, _ = sdpa_attention_forward(layer(), **given, scaling=scaling)
    assert ours.shape == dense.shape == (1, sum(new for new, _ in lengths), HEADS, SIZE)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "options"),
    [({"sliding_window": 4}, {}), ({}, {"sliding_window": 4}), ({}, {"s_aux": torch.zeros(HEADS)})],
)
def test_windows_and_sinks_are_left_to_the_stock_way(
    monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], options: dict[str, Any]
) -> None:
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: ("stock", None))
    assert attend_by_request(layer(**attributes), **batch([(1, 9), (5, 5)]), **options) == ("stock", None)


def test_a_call_without_a_paged_cache_is_left_to_the_stock_way() -> None:
    query, key = torch.randn(2, HEADS, 5, SIZE), torch.randn(2, KEY_HEADS, 5, SIZE)
    ours, _ = attend_by_request(layer(), query, key, key, None)
    stock, _ = sdpa_attention_forward(layer(), query, key, key, None)
    torch.testing.assert_close(ours, stock)
