"""Drawing one token for each row: which tokens are kept, and which of them a uniform number means.

Kept sets are transformers' (temperature, then top_k, top_p, min_p), as one floor under the scaled logits of a row:
a token is kept if its logit reaches the floor. Tokens that tie at the floor are all kept.
"""

from __future__ import annotations

import torch

__all__ = ["draw", "kept_floor", "uniform"]

#: How many of a row's likeliest tokens are looked at before all of them are sorted; sorting the whole vocabulary
#: costs 20 times as much.
CANDIDATES = 256

_MASK_64 = 2**64 - 1


def _mixed(value: int) -> int:
    # The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit flips half of the output bits.
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK_64
    return value ^ value >> 31


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in (0, 1), exact in float32, that depends on its arguments and on nothing else."""
    return ((_mixed(_mixed(_mixed(seed) ^ choice) ^ position) >> 41) + 0.5) / 2**23


def draw(
    scores: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    number: torch.Tensor,
    sort_all: bool = False,
) -> torch.Tensor:
    """One token for each row, by inverse CDF over the vocabulary's order.

    Args:
        scores: Logits, float32 of shape (rows, vocabulary).
        temperature: Shape (rows,), as the next four; above 0.
        top_k: How many of the likeliest tokens to keep; 0 keeps all.
        top_p: Share of the probability to keep.
        min_p: Share of the likeliest token's probability that a token must reach.
        number: Uniform numbers in (0, 1).
        sort_all: Never look at a tensor's values to choose the way (for CUDA graphs).

    Returns:
        Token ids, int64 of shape (rows,).
    """
    scaled = (scores - scores.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)
    floor = kept_floor(scaled, top_k, top_p, min_p, sort_all)
    if sort_all or bool(floor.isfinite().any()):
        scaled = scaled.masked_fill_(scaled < floor.unsqueeze(-1), -torch.inf)
    cumulative = scaled.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Strictly below the total, or rounding could pick a token behind the last kept one.
    target = torch.minimum(number.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Logits that overflowed are NaN here, and point behind the vocabulary: that must not end everybody's loop.
    return token.clamp_(max=scores.size(-1) - 1)


def kept_floor(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, sort_all: bool = False
) -> torch.Tensor:
    """The smallest kept logit of each row, float32 of shape (rows,); -inf where every token is kept.

    Args:
        scaled: Logits divided by their temperature, with a maximum of 0; shape (rows, vocabulary).
        top_k: As for ``draw``, and so are the others.
        top_p: See ``draw``.
        min_p: See ``draw``.
        sort_all: See ``draw``.
    """
    vocabulary = scaled.size(-1)
    floor = min_p.log()
    top_k = torch.where((top_k <= 0) | (top_k > vocabulary), vocabulary, top_k).long()
    if sort_all:
        return torch.maximum(floor, _ranked_floor(scaled, top_k, top_p, vocabulary)[0])
    ranked = ((top_k < vocabulary) | (top_p < 1)).nonzero().squeeze(-1)
    if ranked.numel():
        width = min(CANDIDATES, vocabulary)
        found, enough = _ranked_floor(scaled[ranked], top_k[ranked], top_p[ranked], width)
        if not bool(enough.all()):
            rest = ranked[~enough]
            found[~enough] = _ranked_floor(scaled[rest], top_k[rest], top_p[rest], vocabulary)[0]
        floor[ranked] = torch.maximum(floor[ranked], found)
    return floor


def _ranked_floor(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # From each row's `width` likeliest tokens: its floor by top_k and top_p, and whether `width` was enough.
    best = scaled.topk(width).values
    limited = top_k < scaled.size(-1)
    smallest = best.gather(-1, (top_k - 1).clamp(max=width - 1).unsqueeze(-1))
    smallest = torch.where(limited.unsqueeze(-1), smallest, -torch.inf)
    in_top_k = best >= smallest
    everything = scaled.logsumexp(-1, keepdim=True)
    normaliser = torch.where(limited.unsqueeze(-1), best.where(in_top_k, -torch.inf).logsumexp(-1, True), everything)
    share = (best - normaliser).exp().where(in_top_k, 0.0)
    likelier = share.cumsum(-1) - share
    # The likeliest token is always kept, as with transformers; at 1 rounding must not drop the last ones.
    kept = in_top_k & ((likelier < top_p.unsqueeze(-1)) | (top_p >= 1).unsqueeze(-1))
    floor = best.where(kept, torch.inf).amin(-1)
    floor = torch.where(limited | (top_p < 1), floor, -torch.inf)
    enough = torch.where(limited, top_k <= width, share.sum(-1) >= top_p)
    return floor, enough | (width == scaled.size(-1))
