"""How likely the model found the tokens of a step, before anything was done to its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import torch

from promptmill.protocol import TokenLogprob, TopLogprob

__all__ = ["MOST_ALTERNATIVES", "LogprobsOfStep", "TokenChances"]

#: The most alternatives that a request may ask for.
MOST_ALTERNATIVES = 20

#: Stands for the logarithm of 0, which JSON does not know.
LEAST = -9999.0


@dataclass(frozen=True, slots=True)
class TokenChances:
    """Natural logarithms of probabilities at one position of one text."""

    #: Of the token that was taken.
    logprob: float
    #: (token id, logarithm) of the likeliest tokens, the likeliest first.
    top: list[tuple[int, float]]

    def shown(self, token_id: int, decode: Callable[[list[int]], str]) -> TokenLogprob:
        """The same as it stands in a result.

        Args:
            token_id: The token that was taken.
            decode: Decodes a list of token ids.
        """
        top = tuple(TopLogprob(token=decode([other]), token_id=other, logprob=value) for other, value in self.top)
        return TokenLogprob(token=decode([token_id]), token_id=token_id, logprob=self.logprob, top=top)


class LogprobsOfStep:
    """The log-probabilities of the rows of one step that ask for them.

    Args:
        logits: The model's own, float32 of shape (rows, vocabulary).
        asked: For each row that asks: which it is, and how many alternatives it wants.
    """

    def __init__(self, logits: torch.Tensor, asked: Iterable[tuple[int, int]]) -> None:
        rows, alternatives = zip(*asked, strict=True)
        #: Row of the step → row in here.
        self._places = {row: place for place, row in enumerate(rows)}
        self._rows = torch.tensor(rows, device=logits.device)
        self._all = logits[self._rows].log_softmax(-1)
        self._values, self._token_ids = self._all.topk(min(max(alternatives), logits.size(-1)))
        self._of_taken = torch.empty(0)

    @classmethod
    def static(cls, most_rows: int, device: torch.device) -> Self:
        """Memory for all rows, to be written by ``write`` in each step."""
        new = cls.__new__(cls)
        new._places = {row: row for row in range(most_rows)}
        new._values = torch.zeros((most_rows, MOST_ALTERNATIVES), device=device)
        new._token_ids = torch.zeros((most_rows, MOST_ALTERNATIVES), dtype=torch.int64, device=device)
        new._of_taken = torch.zeros(most_rows, device=device)
        return new

    def taken(self, scores: torch.Tensor) -> None:
        """Notes which tokens are taken: the highest of ``scores``, of the shape of the logits."""
        token = scores[self._rows].argmax(-1)
        self._of_taken = self._all.gather(1, token.unsqueeze(-1)).squeeze(-1)

    def write(self, logits: torch.Tensor, token: torch.Tensor) -> None:
        """Takes a step's logits and taken tokens, int64 of shape (rows,), into the memory of ``static``."""
        logprobs = logits.log_softmax(-1)
        values, token_ids = logprobs.topk(min(MOST_ALTERNATIVES, logits.size(-1)))
        rows, width = values.shape
        self._values[:rows, :width] = values
        self._token_ids[:rows, :width] = token_ids
        self._of_taken[:rows] = logprobs.gather(1, token.unsqueeze(-1)).squeeze(-1)

    def of_row(self, row: int, alternatives: int) -> TokenChances:
        """What a row of the step has asked for."""
        place = self._places[row]
        token_ids, values = self._token_ids[place, :alternatives].tolist(), self._values[place, :alternatives].tolist()
        top = [(token_id, max(value, LEAST)) for token_id, value in zip(token_ids, values, strict=True)]
        return TokenChances(max(float(self._of_taken[place]), LEAST), top)
