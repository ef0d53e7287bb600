"""One batch of ``generate()``: put together once, each row sampled alone, its tokens handed out step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from promptmill_worker.drawing import draw, uniform
from promptmill_worker.logprobs import LogprobsOfStep
from promptmill_worker.penalties import change, changes_of_rows
from promptmill_worker.static_row import Row

__all__ = ["greedy_config", "padded", "run_batch"]


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
        **padded(prompts, max(map(len, prompts)), pad_id, model.device),
        generation_config=greedy_config(max(row.room_tokens for row in rows), pad_id),
        logits_processor=LogitsProcessorList([_RowSampler(rows)]),
        stopping_criteria=StoppingCriteriaList([_Watch(on_tokens)]),
    )


def padded(prompts: list[list[int]], width: int, pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What ``generate()`` is given of ``prompts``: int64 of shape (prompts, ``width``), padded on the left."""
    paddings = [width - len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(
            [[pad_id] * padding + prompt for padding, prompt in zip(paddings, prompts, strict=True)], device=device
        ),
        "attention_mask": torch.tensor(
            [[0] * padding + [1] * (width - padding) for padding in paddings], device=device
        ),
    }


def greedy_config(max_tokens: int, pad_id: int) -> GenerationConfig:
    """Takes the likeliest token, so many times."""
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
