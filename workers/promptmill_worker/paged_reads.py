"""Reading the paged cache page by page, where transformers copies it token by token.

Before each layer's attention transformers copies all cached keys and values of the batch, one token after the other.
Here a layer copies whole pages, for requests of about the same length at once and padded to a common one, so that one
call attends for all of them. Within a page it keeps the tokens of a head together: what is copied is then as the
products want it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

__all__ = ["Decoding", "PagedReads", "Prefill", "read_by_pages"]

#: A group's shortest request has at least this share of its longest one's pages: what is copied in vain stays small.
LEAST_FILL = 0.6


@dataclass(frozen=True)
class Decoding:
    """Requests with one new token each, and about the same number of pages.

    Attributes:
        rows: int64 of shape (requests): where their queries stand in the step.
        pages: int64 of shape (requests, pages of the longest). A shorter one's first page fills its row up.
        mask: What to add to the scores, of shape (requests, 1, 1, tokens of the pages).
    """

    rows: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Prefill:
    """One request with several new tokens.

    Attributes:
        new: Where its queries stand in the step.
        pages: int64 of shape (1, pages).
        total: Its tokens, cached and new.
    """

    new: slice
    pages: torch.Tensor
    total: int


class Plan:
    """What one step reads; the same for all layers of an allocator.

    Args:
        write_index: int64 of shape (new tokens): where transformers wants them in the cache.
        read_index: int64 of shape (tokens), or empty where no request has anything in the cache.
        new: New tokens of each request.
        total: Tokens of each request, with the cached ones.
        page_tokens: Tokens of a page.
        dtype: Of the mask.
    """

    def __init__(
        self,
        write_index: torch.Tensor,
        read_index: torch.Tensor,
        new: list[int],
        total: list[int],
        page_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        self.write_index = write_index
        self.read_index = read_index
        self._page_tokens = page_tokens
        ends = torch.tensor(new).cumsum(0)
        begun = [
            (tokens - 1) // page_tokens * page_tokens >= tokens - fresh
            for fresh, tokens in zip(new, total, strict=True)
        ]
        #: Last pages of requests in which nothing was written before this step.
        self.begun = write_index[ends[torch.tensor(begun)] - 1] // page_tokens
        self.prefills: list[Prefill] = []
        self.decodings: list[Decoding] = []
        if read_index.numel():
            self._group(new, total, dtype)

    def _group(self, new: list[int], total: list[int], dtype: torch.dtype) -> None:
        decoding: list[tuple[torch.Tensor, int, int]] = []
        row = 0
        for fresh, tokens, read in zip(new, total, torch.split(self.read_index[: sum(total)], total), strict=True):
            pages = read[:: self._page_tokens] // self._page_tokens
            if fresh == 1:
                decoding.append((pages, tokens, row))
            else:
                self.prefills.append(Prefill(slice(row, row + fresh), pages[None], tokens))
            row += fresh
        decoding.sort(key=lambda request: -len(request[0]))
        self.decodings = [self._decoding(group, dtype) for group in _alike(decoding)]

    def _decoding(self, group: list[tuple[torch.Tensor, int, int]], dtype: torch.dtype) -> Decoding:
        most = len(group[0][0])
        tokens = torch.tensor([tokens for _, tokens, _ in group])
        beyond = torch.arange(most * self._page_tokens) >= tokens[:, None]
        return Decoding(
            rows=torch.tensor([row for _, _, row in group]),
            pages=torch.stack([torch.cat([pages, pages[:1].expand(most - len(pages))]) for pages, _, _ in group]),
            mask=torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf)[:, None, None],
        )


def _alike(decoding: list[tuple[torch.Tensor, int, int]]) -> Iterator[list[tuple[torch.Tensor, int, int]]]:
    """Groups of requests, which come sorted by their pages, the longest first."""
    group: list[tuple[torch.Tensor, int, int]] = []
    for request in decoding:
        if group and len(request[0]) < LEAST_FILL * len(group[0][0]):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


class PagedReads:
    """A layer's part of the cache within one step, for the attention function.

    Args:
        keys: The layer's keys, of shape (pages, tokens of a page, key heads, head size). A page's memory is used as
            (key heads, tokens of a page, head size).
        values: Like ``keys``.
        plan: What the step reads.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, plan: Plan) -> None:
        self.plan = plan
        _, self._page_tokens, self._key_heads, self._size = keys.shape
        self._heads = torch.arange(self._key_heads)[:, None]
        self._both = [whole.view(len(whole), -1) for whole in (keys, values)]

    def write(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Puts the step's new keys and values, of shape (1, key heads, tokens, head size), into the cache."""
        rows = self._rows(self.plan.write_index)
        for pages, new in zip(self._both, (key, value), strict=True):
            # The rest of a page is read, too, with a weight of 0: whatever lay there must not be infinite.
            pages.index_fill_(0, self.plan.begun, 0)
            pages.view(-1, self._size).index_copy_(0, rows, new.reshape(-1, self._size))

    def of(self, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the keys and values in ``pages``.

        Args:
            pages: int64 of shape (requests, pages).

        Returns:
            Keys and values of shape (requests, key heads, tokens, head size).
        """
        parts = (pages[:, None] * self._key_heads + self._heads).flatten()
        keys, values = (
            whole.view(-1, self._page_tokens * self._size)
            .index_select(0, parts)
            .view(len(pages), self._key_heads, -1, self._size)
            for whole in self._both
        )
        return keys, values

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the step reads, as transformers would have copied it: (1, key heads, tokens, head size) each."""
        rows = self._rows(self.plan.read_index)
        keys, values = (
            whole.view(-1, self._size).index_select(0, rows).view(1, self._key_heads, -1, self._size)
            for whole in self._both
        )
        return keys, values

    def _rows(self, index: torch.Tensor) -> torch.Tensor:
        """Where tokens that transformers numbers so have their parts, one head after the other."""
        page, place = index // self._page_tokens, index % self._page_tokens
        return ((page * self._key_heads + self._heads) * self._page_tokens + place).flatten()


def read_by_pages(cache: Any) -> None:
    """Makes transformers' ``PagedAttentionCache`` leave the reading to our attention function.

    It finds a ``PagedReads`` among its options, as ``page_reads``; its keys and values are the new tokens' alone.
    """
    cache.update = partial(_update, cache, cache.update, {})


def _update(
    cache: Any,
    stock: Any,
    plans: dict[int, Plan],
    key: torch.Tensor,
    value: torch.Tensor,
    layer_idx: int,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    allocator = cache.layer_to_allocator[layer_idx]
    if allocator.layer_type != "full_attention" or kwargs.get("block_table") is not None:
        return stock(key, value, layer_idx, kwargs)  # type: ignore[no-any-return]
    kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int32)
    kwargs["max_length_k"] = kwargs["max_length_k"][allocator.layer_type]
    write_index = kwargs["write_index"][allocator.index]
    plan = plans.get(allocator.index)
    if plan is None or plan.write_index is not write_index:  # the first layer of a step
        plan = plans[allocator.index] = Plan(
            write_index,
            kwargs["read_index"][allocator.index],
            kwargs["cu_seq_lens_q"].diff().tolist(),
            kwargs["cu_seq_lens_k"].diff().tolist(),
            allocator.tokens_per_page,
            key.dtype,
        )
    keys, values = allocator.get_cache_for_block_table(layer_idx)
    reads = PagedReads(keys, values, plan)
    reads.write(key, value)
    kwargs["page_reads"] = reads
    return key, value
