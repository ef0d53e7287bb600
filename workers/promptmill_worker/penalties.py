"""What a row's own history does to its logits: penalties, biases, and an end that has to wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from promptmill.sampling_params import SamplingParams

__all__ = ["Changes", "Penalties", "StaticChanges", "change", "changes_of_rows"]


@dataclass
class Changes:
    """Changes to some tokens' logits of one row: ``logit + bias``, times or over ``factor``, minus ``less``.

    A positive logit is divided by its factor and a negative one multiplied, as transformers does it for the repetition
    penalty.
    """

    token_ids: list[int] = field(default_factory=list)
    bias: list[float] = field(default_factory=list)
    factor: list[float] = field(default_factory=list)
    less: list[float] = field(default_factory=list)


class Penalties:
    """The changes of one choice of one request, kept up as its text grows. Lives on the loop's thread.

    Args:
        sampling: What was asked.
        prompt_ids: Counts for the repetition penalty; the two others are about the text alone.
        end_ids: Tokens that must not come before ``min_tokens``.
    """

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], end_ids: frozenset[int]) -> None:
        self._repetition = sampling.repetition_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._min_tokens = sampling.min_tokens
        self._changes = Changes()
        #: Token id → its place in the lists of changes.
        self._places: dict[int, int] = {}
        #: Tokens that are in the text.
        self._in_text: set[int] = set()
        #: Tokens of the text that are counted already.
        self._counted = 0
        for token_id, bias in sampling.logit_bias.items():
            self._changes.bias[self._place(token_id)] = bias
        if self._repetition != 1:
            for token_id in dict.fromkeys(prompt_ids):
                self._changes.factor[self._place(token_id)] = self._repetition
        self._end_places = [self._place(token_id) for token_id in sorted(end_ids)] if self._min_tokens else []

    @classmethod
    def of(cls, sampling: SamplingParams, prompt_ids: Sequence[int], end_ids: frozenset[int]) -> Penalties | None:
        """The penalties that ``sampling`` asks for, if any."""
        neutral = (
            sampling.repetition_penalty == 1
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
            and not sampling.logit_bias
            and not (sampling.min_tokens and end_ids)
        )
        return None if neutral else cls(sampling, prompt_ids, end_ids)

    def after(self, text_ids: Sequence[int]) -> Changes:
        """The changes for the token that follows ``text_ids``, all tokens of the text so far."""
        for token_id in text_ids[self._counted :]:
            self._count(token_id)
        self._counted = len(text_ids)
        if self._counted >= self._min_tokens:
            return self._changes
        less = self._changes.less.copy()
        for place in self._end_places:
            less[place] = math.inf
        return Changes(self._changes.token_ids, self._changes.bias, self._changes.factor, less)

    def _count(self, token_id: int) -> None:
        if self._repetition == 1 and not self._presence and not self._frequency:
            return
        place = self._place(token_id)
        self._changes.factor[place] = self._repetition
        self._changes.less[place] += self._frequency
        if token_id not in self._in_text:
            self._in_text.add(token_id)
            self._changes.less[place] += self._presence

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._changes.token_ids):
            self._changes.token_ids.append(token_id)
            self._changes.bias.append(0.0)
            self._changes.factor.append(1.0)
            self._changes.less.append(0.0)
        return place


def changes_of_rows(changes: dict[int, Changes], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The changes of several rows, by row, as two tensors.

    Returns:
        (where, int64 of shape (2, changes): row and token id; what, float32 of shape (3, changes): bias, factor, less)
    """
    rows = [row for row, of_row in changes.items() for _ in of_row.token_ids]
    token_ids = [token_id for of_row in changes.values() for token_id in of_row.token_ids]
    what = [
        [value for of_row in changes.values() for value in getattr(of_row, name)] for name in ("bias", "factor", "less")
    ]
    where = torch.tensor([rows, token_ids], dtype=torch.int64, device=device)
    return where, torch.tensor(what, dtype=torch.float32, device=device)


def change(logits: torch.Tensor, bias: torch.Tensor, factor: torch.Tensor, less: torch.Tensor) -> torch.Tensor:
    """``logits`` with the changes; all four of one shape, float32."""
    biased = logits + bias
    return torch.where(biased < 0, biased * factor, biased / factor) - less


class StaticChanges:
    """Changes to all logits of all rows, in memory that stays where it is, as CUDA graphs need it.

    Args:
        most_rows: The most rows of a step.
        vocabulary: Logits of a row.
        device: Where they are.
    """

    def __init__(self, most_rows: int, vocabulary: int, device: torch.device) -> None:
        #: bias, factor and less.
        self._all = torch.zeros((3, most_rows, vocabulary), device=device)
        self._all[1] = 1
        #: Rows that a step has changed.
        self._used: list[int] = []

    def write(self, changes: dict[int, Changes]) -> None:
        """Takes the changes of the coming step, by row."""
        if self._used:
            self._all[:, self._used] = torch.tensor([0.0, 1.0, 0.0], device=self._all.device).view(3, 1, 1)
        self._used = list(changes)
        if changes:
            where, what = changes_of_rows(changes, self._all.device)
            self._all[:, where[0], where[1]] = what

    def of_rows(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """bias, factor and less of the first ``rows`` rows, each of shape (rows, vocabulary)."""
        bias, factor, less = self._all[:, :rows]
        return bias, factor, less
