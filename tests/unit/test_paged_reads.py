"""Attention on pages of the cache equals transformers' dense block on what it copies out of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from paged_batches import KEY_HEADS, SIZE, batch, layer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from promptmill_worker import attention, page_plan
from promptmill_worker.attention import attend_by_request
from promptmill_worker.page_plan import PageShape, Plan
from promptmill_worker.paged_reads import PagedReads

SHAPE = PageShape(KEY_HEADS, tokens=4, head_size=SIZE, stride=12)

#: Number of a request → an earlier one, and how many of its pages it shares.
Beginnings = dict[int, tuple[int, int]]


def paged(
    given: dict[str, Any], lengths: list[tuple[int, int]], seed: int, beginnings: Beginnings | None = None
) -> PagedReads:
    """The batch's keys and values, written in two steps to pages in no order; what was not written to is NaN.

    Those of requests that begin as an earlier one does are made the same in ``given``.
    """
    needed = [-(-total // SHAPE.tokens) for _, total in lengths]
    pages = list(range(sum(needed) + 3))
    caches = [torch.full((len(pages), KEY_HEADS * SHAPE.tokens * SIZE), torch.nan) for _ in range(2)]
    random.Random(seed).shuffle(pages)
    places = []
    owned: list[list[int]] = []
    begins = [0, *itertools.accumulate(total for _, total in lengths)]
    for number, ((_, total), count) in enumerate(zip(lengths, needed, strict=True)):
        leader, shared = (beginnings or {}).get(number, (0, 0))
        owned.append([*(owned[leader][:shared] if shared else ()), *(pages.pop() for _ in range(count - shared))])
        for tensor in (given["key"], given["value"]):
            begin, tokens = begins[leader], shared * SHAPE.tokens
            tensor[:, :, begins[number] : begins[number] + tokens] = tensor[:, :, begin : begin + tokens].clone()
        places.append([page * SHAPE.stride + place for page in owned[-1] for place in range(SHAPE.tokens)][:total])
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


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_dense_block_where_requests_begin_alike(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(page_plan, "WORTH_PAGES", 2)
    draw = random.Random(seed)
    lengths = [(draw.choice([1, 1, 1, 5]), draw.randint(30, 90)) for _ in range(draw.randint(2, 12))]
    beginnings: Beginnings = {}
    for number in range(1, len(lengths)):
        leader = draw.randrange(number)
        most = min((total - new) // SHAPE.tokens for new, total in (lengths[leader], lengths[number]))
        beginnings[number] = leader, draw.choice([0, draw.randint(0, most), most])
    given = batch(lengths)
    reads = paged(given, lengths, seed, beginnings)
    dense, _ = sdpa_attention_forward(layer(), **given)
    ours, _ = attend_by_request(layer(), **{**given, "key": None, "value": None}, page_reads=reads)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


def test_what_requests_begin_with_is_read_once_where_that_is_worth_it() -> None:
    lengths = [(1, 200)] * 12
    # The first eight share 20 pages, four of these another 25; two of the others share one page.
    beginnings = {**dict.fromkeys(range(1, 4), (0, 20)), 4: (0, 20), **dict.fromkeys(range(5, 8), (4, 45)), 9: (8, 1)}
    decodings = paged(batch(lengths), lengths, 1, beginnings).plan.decodings
    grouped = {tuple(sorted(group.rows.tolist())): group.shared.numel() // KEY_HEADS for group in decodings}
    assert grouped == {(0, 1, 2, 3): 0, (4, 5, 6, 7): 45, (8, 9, 10, 11): 0}


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
