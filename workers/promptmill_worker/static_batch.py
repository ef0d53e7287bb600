"""One batch of ``generate()`` that stays as it was put together: its rows, how each is sampled, when each ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from promptmill_worker.drawing import draw, uniform
from promptmill_worker.generation import Sequence
from promptmill_worker.logprobs import LogprobsOfStep, TokenChances
from promptmill_worker.penalties import change, changes_of_rows
from promptmill_worker.sampler import RowSampling

__all__ = ["Row", "padding_is_exact", "run_batch"]

#: The largest difference that padding may make to the logits, as a share of their spread, where they are rounded to
#: float32 and where to less. A model that reads its padding is off by more than the tenth.
EXACT_SHARE = {torch.float32: 1e-3}
ROUNDED_SHARE = 0.1

#: Length of the prompt with which padding is tried, of the padding, and of the text, in tokens.
TRIED_PROMPT_TOKENS = 5
TRIED_PADDING_TOKENS = 3
TRIED_TEXT_TOKENS = 3


@dataclass(slots=True, eq=False)
class Row:
    """One choice of a request, waiting for a batch or in one."""

    sequence: Sequence
    sampling: RowSampling
    #: What it has generated so far; not empty in a new batch if an earlier one did not fit the memory.
    token_ids: list[int] = field(default_factory=list)
    #: Whether its text has ended.
    ended: bool = False
    #: Log-probabilities of its newest token, if its request asks for them.
    chances: TokenChances | None = None

    @property
    def live(self) -> bool:
        """Whether there is anything to generate for it: not if its text, or its request, has ended."""
        return not self.ended and not self.sequence.generation.future.done()

    @property
    def input_ids(self) -> list[int]:
        """What the model has to read."""
        return self.sequence.generation.admitted.prompt_ids + self.token_ids

    @property
    def room_tokens(self) -> int:
        """How many more tokens it may have."""
        return self.sequence.generation.admitted.max_tokens - len(self.token_ids)

    def add(self, token_id: int) -> bool:
        """Takes its next token; returns whether that is its last, by number or kind."""
        # A new list: the sequence tells what is new by comparing it with the one before.
        self.token_ids = [*self.token_ids, token_id]
        return self.room_tokens <= 0 or token_id in self.sequence.generation.admitted.end_ids


def run_batch(model: Any, rows: list[Row], pad_id: int, on_tokens: Callable[[list[int]], bool]) -> None:
    """Generates until ``on_tokens`` wants no more.

    Args:
        model: A causal language model of transformers.
        rows: With room for a token each.
        pad_id: A token to pad with on the left; it is masked.
        on_tokens: Told the new token of each row after each step; returns whether to go on.
    """
    prompts = [row.input_ids for row in rows]
    model.generate(
        **_padded(prompts, max(map(len, prompts)), pad_id, model.device),
        generation_config=_config(max(row.room_tokens for row in rows), pad_id),
        logits_processor=LogitsProcessorList([_RowSampler(rows)]),
        stopping_criteria=StoppingCriteriaList([_Watch(on_tokens)]),
    )


def padding_is_exact(model: Any, pad_id: int) -> bool:
    """Whether a row that is padded on the left gets the logits that it gets without, tried out on ``model``."""
    vocabulary = model.get_input_embeddings().num_embeddings
    prompt = [1 + 7 * index % (vocabulary - 1) for index in range(TRIED_PROMPT_TOKENS)]
    alone, padded = (
        model.generate(
            **_padded([prompt], len(prompt) + padding, pad_id, model.device),
            generation_config=_config(TRIED_TEXT_TOKENS, pad_id),
            output_logits=True,
            return_dict_in_generate=True,
        )
        for padding in (0, TRIED_PADDING_TOKENS)
    )
    if alone.sequences[:, -TRIED_TEXT_TOKENS:].ne(padded.sequences[:, -TRIED_TEXT_TOKENS:]).any():
        return False
    share = EXACT_SHARE.get(model.dtype, ROUNDED_SHARE)
    return all(
        bool((one - other).abs().max() <= share * one.float().std())
        for one, other in zip(alone.logits, padded.logits, strict=True)
    )


def _padded(prompts: list[list[int]], width: int, pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    paddings = [width - len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(
            [[pad_id] * padding + prompt for padding, prompt in zip(paddings, prompts, strict=True)], device=device
        ),
        "attention_mask": torch.tensor(
            [[0] * padding + [1] * (width - padding) for padding in paddings], device=device
        ),
    }


def _config(max_tokens: int, pad_id: int) -> GenerationConfig:
    # Each row ends at its own tokens, which only we know; no text holds token -1.
    return GenerationConfig(do_sample=False, max_new_tokens=max_tokens, eos_token_id=-1, pad_token_id=pad_id)


class _RowSampler(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Changes what a row's penalties name, and lifts the drawn token of each sampled row above all others."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids  # padded; a row knows its own
        live = {index: row for index, row in enumerate(self._rows) if row.live}
        asked = {index: row.sampling.logprobs for index, row in live.items() if row.sampling.logprobs is not None}
        logprobs = LogprobsOfStep(scores, asked.items()) if asked else None
        changes = {
            index: row.sampling.penalties.after(row.token_ids)
            for index, row in live.items()
            if row.sampling.penalties is not None
        }
        if changes:
            where, what = changes_of_rows(changes, scores.device)
            scores[where[0], where[1]] = change(scores[where[0], where[1]], *what)
        if sampled := [index for index, row in live.items() if not row.sampling.greedy]:
            numbers = [_numbers(self._rows[index]) for index in sampled]
            arguments = torch.tensor(numbers, dtype=torch.float32, device=scores.device).T
            rows = torch.tensor(sampled, device=scores.device)
            scores[rows, draw(scores[rows], *arguments)] = torch.inf
        if logprobs is not None:
            logprobs.taken(scores)
            for index, alternatives in asked.items():
                self._rows[index].chances = logprobs.of_row(index, alternatives)
        return scores


def _numbers(row: Row) -> tuple[float, ...]:
    sampling = row.sampling
    number = uniform(sampling.seed, sampling.choice, len(row.token_ids))
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, number


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Hands out the tokens of each step, and ends the batch as a whole: rows that have ended are left to idle."""

    def __init__(self, on_tokens: Callable[[list[int]], bool]) -> None:
        self._on_tokens = on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        goes_on = self._on_tokens(input_ids[:, -1].tolist())
        return torch.full((input_ids.size(0),), not goes_on, device=input_ids.device)
