"""Reading the paged cache page by page, where transformers copies it token by token.

Before each layer's attention transformers copies all cached keys and values of the batch, one token after the other.
Here a layer copies whole pages, for requests of about the same length at once and padded to a common one, so that one
call attends for all of them. Within a page it keeps the tokens of a head together: what is copied is then as the
products want it. And it keeps the pages of a layer together, where transformers has those of a token's layers: memory
that is read one piece after the next lies close by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from promptmill_worker.page_plan import PageShape, Plan

__all__ = ["PagedReads", "read_by_pages"]


class PagedReads:
    """A layer's part of the cache within one step, for the attention function.

    Args:
        keys: The layer's pages, of shape (pages, key heads · tokens of a page · head size).
        values: Like ``keys``.
        plan: What the step reads.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, plan: Plan) -> None:
        self.plan = plan
        self._keys, self._values = keys, values
        self._part = plan.shape.tokens * plan.shape.head_size

    def write(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Puts the step's new keys and values, of shape (1, key heads, tokens, head size), into the cache."""
        size = self.plan.shape.head_size
        for pages, new in ((self._keys, key), (self._values, value)):
            # The rest of a page is read, too, with a weight of 0: whatever lay there must not be infinite.
            pages.index_fill_(0, self.plan.begun, 0)
            pages.view(-1, size).index_copy_(0, self.plan.written, new.reshape(-1, size))

    def keys(self, parts: torch.Tensor, rows: int) -> torch.Tensor:
        """A copy of the keys in ``parts``.

        Args:
            parts: Of a ``Decoding`` or ``Prefill``.
            rows: How many there are of a request and a key head.

        Returns:
            Keys of shape (rows, tokens of its pages, head size).
        """
        return self._copied(self._keys, parts, rows)

    def values(self, parts: torch.Tensor, rows: int) -> torch.Tensor:
        """Like ``keys``."""
        return self._copied(self._values, parts, rows)

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the step reads, as transformers would have copied it: (1, key heads, tokens, head size) each."""
        shape, places = self.plan.shape, self.plan.read()
        keys, values = (
            pages.view(-1, shape.head_size).index_select(0, places).view(1, shape.key_heads, -1, shape.head_size)
            for pages in (self._keys, self._values)
        )
        return keys, values

    def _copied(self, pages: torch.Tensor, parts: torch.Tensor, rows: int) -> torch.Tensor:
        return pages.view(-1, self._part).index_select(0, parts).view(rows, -1, self.plan.shape.head_size)


@dataclass(frozen=True)
class _Pages:
    """The memory of the layers that share an allocator.

    Attributes:
        shape: Of a page.
        layers: Number of a layer → its keys and values, of shape (pages, key heads · tokens of a page · head size).
    """

    shape: PageShape
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]


def read_by_pages(cache: Any) -> None:
    """Makes transformers' ``PagedAttentionCache`` leave the reading to our attention function.

    It finds a ``PagedReads`` among its options, as ``page_reads``; its keys and values are the new tokens' alone.
    """
    allocators = [one for one in cache.cache_allocators.values() if one.layer_type == "full_attention"]
    pages = {one.index: _pages(one, alone=len(cache.cache_allocators) == 1) for one in allocators}
    cache.update = partial(_update, cache, cache.update, pages, {})


def _pages(allocator: Any, alone: bool) -> _Pages:
    """What is in the memory of an allocator; one that shares it with others must leave it divided as it is."""
    views = {layer: allocator.get_cache_for_block_table(layer) for layer in allocator.layer_indices}
    _, tokens, key_heads, size = next(iter(views.values()))[0].shape
    if alone:
        layers = allocator.cache_tensor.view(len(views), 2, -1, key_heads * tokens * size)
        stride = allocator.block_physical_stride
        return _Pages(
            PageShape(key_heads, tokens, size, stride),
            {layer: (both[0], both[1]) for layer, both in zip(views, layers, strict=True)},
        )
    return _Pages(
        PageShape(key_heads, tokens, size, stride=tokens),
        {layer: (keys.flatten(1), values.flatten(1)) for layer, (keys, values) in views.items()},
    )


def _update(
    cache: Any,
    stock: Any,
    pages: dict[int, _Pages],
    plans: dict[int, Plan],
    key: torch.Tensor,
    value: torch.Tensor,
    layer_idx: int,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    allocator = cache.layer_to_allocator[layer_idx]
    if allocator.index not in pages or kwargs.get("block_table") is not None:
        return stock(key, value, layer_idx, kwargs)  # type: ignore[no-any-return]
    kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int32)
    kwargs["max_length_k"] = kwargs["max_length_k"][allocator.layer_type]
    write_index = kwargs["write_index"][allocator.index]
    own = pages[allocator.index]
    plan = plans.get(allocator.index)
    if plan is None or plan.write_index is not write_index:  # the first layer of a step
        plan = plans[allocator.index] = Plan(
            own.shape,
            write_index,
            kwargs["read_index"][allocator.index],
            kwargs["cu_seq_lens_q"].diff().tolist(),
            kwargs["cu_seq_lens_k"].diff().tolist(),
            key.dtype,
        )
    reads = PagedReads(*own.layers[layer_idx], plan)
    reads.write(key, value)
    kwargs["page_reads"] = reads
    return key, value
