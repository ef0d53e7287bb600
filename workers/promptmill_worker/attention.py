"""Attention over the paged cache where there is no flash attention: each request to its own keys.

transformers' own way there is one dense block of all queries against all requests' keys, masked, whose cost grows with
the square of the batch. The engine also passes along where each request's queries and keys begin. With ``PagedReads``
requests that decode are attended to in groups of about equal length, and what they begin with in common once for all
of them; without them one by one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from promptmill_worker.page_plan import Decoding
from promptmill_worker.paged_reads import PagedReads

__all__ = ["attend_by_request", "use_attention_by_request"]


def use_attention_by_request() -> None:
    """Puts ``attend_by_request`` in the place of transformers' "sdpa", in this process."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend_by_request


def attend_by_request(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each request of a batch to its own keys.

    Args:
        module: The attention layer.
        query: Of shape (1, heads, query tokens, head size): all requests' new tokens, one request after the other.
        key: Of shape (1, key heads, key tokens, head size): for each request what it has cached and its new tokens.
        value: Like ``key``.
        attention_mask: For the stock way.
        dropout: For the stock way.
        scaling: Factor of the scores; None is 1 / √(head size).
        options: Among them ``cu_seq_lens_q`` and ``cu_seq_lens_k``, int32 of shape (requests + 1): where each request
            begins; and ``page_reads``, if the cache was not read yet: then ``key`` and ``value`` are the new tokens'
            alone. What else a layer may ask for (windows, sinks, biases) is left to the stock way.

    Returns:
        (attended values of shape (1, query tokens, heads, head size), None)
    """
    reads: PagedReads | None = options.pop("page_reads", None)
    if not _is_plain_paged(module, query, dropout, options):
        if reads is not None and reads.plan.reads_cache:
            key, value = reads.all()
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if reads is not None and reads.plan.reads_cache:
        return _attend_by_page(query, reads, scaling), None
    query_lengths = options["cu_seq_lens_q"].diff().tolist()
    key_lengths = options["cu_seq_lens_k"].diff().tolist()
    parts = zip(
        torch.split(query, query_lengths, dim=2),
        torch.split(key[:, :, : sum(key_lengths)], key_lengths, dim=2),
        torch.split(value[:, :, : sum(key_lengths)], key_lengths, dim=2),
        strict=True,
    )
    attended = [_decode(*part, scaling) if part[0].size(2) == 1 else _prefill(*part, scaling) for part in parts]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _attend_by_page(query: torch.Tensor, reads: PagedReads, scaling: float | None) -> torch.Tensor:
    heads, tokens, size = query.shape[1:]
    key_heads = reads.plan.shape.key_heads
    attended = query.new_empty(1, tokens, heads, size)
    for prefill in reads.plan.prefills:
        key, value = (read(prefill.parts, key_heads)[None, :, : prefill.total] for read in (reads.keys, reads.values))
        attended[:, prefill.new] = _prefill(query[:, :, prefill.new], key, value, scaling).transpose(1, 2)
    for group in reads.plan.decodings:
        rows = query[0].index_select(1, group.rows).transpose(0, 1).reshape(len(group.mask), -1, size)
        attended[0].index_copy_(0, group.rows, _decode_group(rows, reads, group, scaling).view(-1, heads, size))
    return attended


def _decode_group(query: torch.Tensor, reads: PagedReads, group: Decoding, scaling: float | None) -> torch.Tensor:
    """Queries, and what they attend to, of shape (requests · key heads, heads that share a key head, head size)."""
    scaling = scaling or query.size(-1) ** -0.5
    key = reads.keys(group.parts, len(query))
    scores = torch.baddbmm(group.mask, query, key.transpose(1, 2), alpha=scaling)
    if not group.shared.numel():
        # Not before: copied together, keys and values would push each other out of the processor's cache.
        return torch.bmm(scores.softmax(-1), reads.values(group.parts, len(query)))
    # What all begin with is read once, and is one product for all of them.
    requests, heads = len(group.rows), reads.plan.shape.key_heads
    shared_key = reads.keys(group.shared, heads)
    shared_scores = torch.bmm(_by_head(query, requests), shared_key.transpose(1, 2)).mul_(scaling)
    weights = torch.cat([_by_request(shared_scores, requests), scores], dim=-1).softmax(-1)
    shared_weights, own_weights = torch.split(weights, [shared_key.size(1), key.size(1)], dim=-1)
    of_shared = torch.bmm(_by_head(shared_weights, requests), reads.values(group.shared, heads))
    return torch.bmm(own_weights, reads.values(group.parts, len(query))).add_(_by_request(of_shared, requests))


def _by_head(rows: torch.Tensor, requests: int) -> torch.Tensor:
    """From shape (requests · key heads, n, size) to (key heads, requests · n, size)."""
    return rows.reshape(requests, -1, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)


def _by_request(rows: torch.Tensor, requests: int) -> torch.Tensor:
    """The way back."""
    return rows.reshape(len(rows), requests, -1, rows.size(-1)).transpose(0, 1).flatten(0, 1)


#: What a layer may hand over that changes the scores in a way that is not written here.
_NOT_OURS = ("block_table", "position_bias", "s_aux", "sliding_window", "softcap")


def _is_plain_paged(module: torch.nn.Module, query: torch.Tensor, dropout: float, options: dict[str, Any]) -> bool:
    starts = options.get("cu_seq_lens_q")
    return (
        starts is not None
        # On CUDA reading the lengths would stall the device, and flash attention is there.
        and query.device.type != "cuda"
        and query.size(0) == 1
        and dropout == 0.0
        and getattr(module, "sliding_window", None) is None
        and not _has_its_window_in_the_mask(module, options)
        and all(options.get(name) is None for name in _NOT_OURS)
        and int(starts[-1]) == query.size(2)
    )


def _has_its_window_in_the_mask(module: torch.nn.Module, options: dict[str, Any]) -> bool:
    """Whether a model with a sliding window tells its layers nothing of it (PhiMoE)."""
    window = getattr(getattr(module, "config", None), "sliding_window", None)
    return window is not None and "sliding_window" not in options and not hasattr(module, "sliding_window")


def _decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """One new token attends to all keys: the heads that share a key head stand in for a sequence, no key is copied."""
    heads, size = query.size(1), query.size(3)
    grouped = query.view(1, key.size(1), heads // key.size(1), size)
    return F.scaled_dot_product_attention(grouped, key, value, scale=scaling).reshape(1, heads, 1, size)


def _prefill(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Several new tokens, each of which attends to the keys up to its own."""
    new, total = query.size(2), key.size(2)
    shared = key.size(1) != query.size(1)
    if new == total:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)
    mask = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared)
