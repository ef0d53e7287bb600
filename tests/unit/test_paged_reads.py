"""Attention on pages of the cache equals transformers' dense block on what it copies out of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from paged_batches import KEY_HEADS, SIZE, batch, layer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from promptmill_worker import attention
from promptmill_worker.attention import attend_by_request
from promptmill_worker.page_plan import PageShape, Plan
from promptmill_worker.paged_reads import PagedReads

SHAPE = PageShape(KEY_HEADS, tokens=4, head_size=SIZE, stride=12)


def paged(given: dict[str, Any], lengths: list[tuple[int, int]], seed: int) -> PagedReads:
    """The batch's keys and values, written in two steps to pages in no order; what was not written to is NaN."""
    needed = [-(-total // SHAPE.tokens) for _, total in lengths]
    pages = list(range(sum(needed) + 3))
    caches = [torch.full((len(pages), KEY_HEADS * SHAPE.tokens * SIZE), torch.nan) for _ in range(2)]
    random.Random(seed).shuffle(pages)
    places = []
    for (_, total), count in zip(lengths, needed, strict=True):
        own = [pages.pop() for _ in range(count)]
        places.append([page * SHAPE.stride + place for page in own for place in range(SHAPE.tokens)][:total])
    past = [total - new for new, total in lengths]
    if any(past):
        written(caches, given, places, [range(cached) for cached in past], [])
    new = [range(cached, total) for cached, (_, total) in zip(past, lengths, strict=True)]
    return written(caches, given, places, new, list(itertools.chain(*places)))


def written(
    caches: list[torch.Tensor],
    given: dict[str, Any],
    places: list[list[int]],
    tokens: list[range],
    read_index: list[int],
) -> PagedReads:
    """A step that puts these tokens of each request into the cache."""
    begins = [0, *itertools.accumulate(len(own) for own in places)]
    taking_part = [number for number, own in enumerate(tokens) if own]
    new = [begins[number] + token for number in taking_part for token in tokens[number]]
    plan = Plan(
        SHAPE,
        torch.tensor([places[number][token] for number in taking_part for token in tokens[number]], dtype=torch.int64),
        torch.tensor(read_index, dtype=torch.int64),
        [len(tokens[number]) for number in taking_part],
        [tokens[number].stop for number in taking_part],
        torch.float32,
    )
    reads = PagedReads(*caches, plan)
    reads.write(given["key"][:, :, new], given["value"][:, :, new])
    return reads


def lengths_of(seed: int) -> list[tuple[int, int]]:
    """(new tokens, tokens with the cached ones) of some requests, most of which decode."""
    draw = random.Random(seed)
    requests = []
    for _ in range(draw.randint(1, 12)):
        new = draw.choice([1, 1, 1, 1, draw.randint(2, 20)])
        requests.append((new, new + draw.choice([0, draw.randint(0, 90)])))
    return requests


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_dense_block_over_random_lengths(seed: int) -> None:
    lengths = lengths_of(seed)
    given = batch(lengths)
    dense, _ = sdpa_attention_forward(layer(), **given)
    reads = paged(given, lengths, seed)
    ours, _ = attend_by_request(layer(), **{**given, "key": None, "value": None}, page_reads=reads)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


def test_short_requests_are_not_padded_to_a_long_ones_length() -> None:
    lengths = [(1, 400), (1, 390), (1, 20), (1, 19), (1, 3)]
    decodings = paged(batch(lengths), lengths, 1).plan.decodings
    assert [group.rows.tolist() for group in decodings] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_that_is_not_ours_gets_what_transformers_would_copy(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    lengths = lengths_of(seed)
    given = batch(lengths)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *arguments, **_: seen.extend(arguments[2:4]))
    reads = paged(given, lengths, seed)
    attend_by_request(layer(sliding_window=4), **{**given, "key": None, "value": None}, page_reads=reads)
    torch.testing.assert_close(seen, [given["key"], given["value"]])
