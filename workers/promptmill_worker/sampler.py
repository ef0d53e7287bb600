"""Sampling for each request alone, inside transformers' running batch.

The loop of transformers takes the argmax of every row. This processor lets plain greedy rows be; it changes the logits
that a row's own penalties and biases name, and in a sampled row it draws one token by inverse CDF and lifts its score
above all others. The uniform number of a draw is a hash of (seed, choice, position), so a request's tokens depend
neither on its neighbours in the batch nor on the moment, the worker or the attempt, up to floating-point differences
between batch shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)

from promptmill.sampling_params import SamplingParams
from promptmill_worker.admission import Admitted
from promptmill_worker.drawing import draw, uniform
from promptmill_worker.logprobs import LogprobsOfStep, TokenChances
from promptmill_worker.penalties import Changes, Penalties, StaticChanges, change, changes_of_rows

__all__ = ["FusedSampler", "RowSampling"]

#: Below this temperature a row is greedy: dividing by it would overflow float32.
SMALLEST_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one choice of one request is sampled."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    #: Number of the choice among the n of its request.
    choice: int
    #: Length of the prompt, in tokens: where position 0 of the text lies.
    prompt_tokens: int
    #: What its history does to its logits; None changes nothing.
    penalties: Penalties | None = None
    #: How many alternatives to tell the log-probabilities of; None tells none.
    logprobs: int | None = None

    @classmethod
    def of(cls, sampling: SamplingParams, admitted: Admitted, seed: int, choice: int) -> Self:
        """How one choice of a request is sampled.

        Args:
            sampling: What the request asks for.
            admitted: The request in tokens.
            seed: Its own, or one that was drawn for it.
            choice: Number of the choice.
        """
        return cls(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=seed,
            choice=choice,
            prompt_tokens=len(admitted.prompt_ids),
            penalties=Penalties.of(sampling, admitted.prompt_ids, admitted.end_ids),
            logprobs=sampling.logprobs,
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < SMALLEST_TEMPERATURE


_GREEDY = RowSampling(0.0, 0, 1.0, 0.0, 0, 0, 0)


class FusedSampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]  # transformers is untyped
    """The only logits processor of the running batch; lives on the loop's thread.

    It stands in for transformers' list of processors because a member of that list gets one number a row, and
    sampling needs five, and a row's history. A request brings its ``RowSampling`` as the keyword ``row`` of
    ``add_request``.

    Args:
        static_shapes: The loop replays CUDA graphs: every row takes the same way through the same kernels, and what
            changes from step to step is read from, and written to, the same memory.
        vocabulary: How many logits a row has; needed for ``static_shapes``.
    """

    def __init__(self, static_shapes: bool = False, vocabulary: int = 0) -> None:
        super().__init__(LogitsProcessorList())
        #: temperature, top_k, top_p, min_p and the uniform number, as float32 viewed as int32.
        self.tensors_required = 5
        self.supported_keys = {"row": RowSampling}
        self.do_processing = True
        self.static_shapes = static_shapes
        self._vocabulary = vocabulary
        #: Rows of the coming step that are sampled.
        self._sampled: list[int] = []
        #: Changes of the coming step, by row.
        self._changes: dict[int, Changes] = {}
        self._static_changes: StaticChanges | None = None
        #: Requests that want log-probabilities of the coming step: their row, and how many alternatives.
        self._asked: dict[str, tuple[int, int]] = {}
        self._logprobs: LogprobsOfStep | None = None

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Makes every row greedy."""
        int32_tensor.copy_(torch.tensor([[0.0], [0.0], [1.0], [0.0], [0.5]]).view(torch.int32))

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Writes the numbers of the coming step into ``arg_storage``, int32 of shape (5, most rows)."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        rows = [state.logit_processor_kwargs.get("row", _GREEDY) for state in states]
        self._sampled = [index for index, row in enumerate(rows) if not row.greedy]
        self._changes = {
            index: row.penalties.after(_text_ids(state, row.prompt_tokens))
            for index, (row, state) in enumerate(zip(rows, states, strict=True))
            if row.penalties is not None
        }
        self._asked = {
            state.request_id: (index, row.logprobs)
            for index, (row, state) in enumerate(zip(rows, states, strict=True))
            if row.logprobs is not None
        }
        if self._sampled or self.static_shapes:
            numbers = [
                (
                    0.0 if row.greedy else row.temperature,
                    row.top_k,
                    row.top_p,
                    row.min_p,
                    # The offset counts the tokens before the one to draw; unlike the state's list of generated
                    # tokens it goes on counting when transformers has put a request back and prefills it anew.
                    uniform(row.seed, row.choice, state.position_offset - row.prompt_tokens),
                )
                for row, state in zip(rows, states, strict=True)
            ]
            prepared = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 5).T.contiguous().view(torch.int32)
            arg_storage[:, : len(rows)] = prepared.to(arg_storage.device)
        if self.static_shapes:
            self._prepare_static(arg_storage)
        return arg_storage

    def chances(self, request_id: str) -> TokenChances | None:
        """The log-probabilities of the last step's token of a request, if it asked for them."""
        asked = self._asked.get(request_id)
        return None if asked is None or self._logprobs is None else self._logprobs.of_row(*asked)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """``scores``, float32 of shape (rows, vocabulary), with the drawn token of each sampled row on top."""
        del input_ids
        arguments = logits_processor_args.view(torch.float32)
        if self.static_shapes:
            return self._process_static(scores, arguments)
        logprobs = LogprobsOfStep(scores, self._asked.values()) if self._asked else None
        if self._changes:
            where, what = changes_of_rows(self._changes, scores.device)
            scores[where[0], where[1]] = change(scores[where[0], where[1]], *what)
        if self._sampled:
            rows = torch.tensor(self._sampled, device=scores.device)
            scores[rows, draw(scores[rows], *arguments[:, rows])] = torch.inf
        if logprobs is not None:
            logprobs.taken(scores)
            self._logprobs = logprobs
        return scores

    def _prepare_static(self, arg_storage: torch.Tensor) -> None:
        if self._static_changes is None:
            most_rows = arg_storage.size(1)
            self._static_changes = StaticChanges(most_rows, self._vocabulary, arg_storage.device)
            self._logprobs = LogprobsOfStep.static(most_rows, arg_storage.device)
        self._static_changes.write(self._changes)

    def _process_static(self, scores: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
        raw, rows = scores, scores.size(0)
        if self._static_changes is not None:
            scores = change(scores, *self._static_changes.of_rows(rows))
        sampled = arguments[0] > 0
        temperature = torch.where(sampled, arguments[0], 1.0)
        _, top_k, top_p, min_p, number = arguments
        drawn = draw(scores, temperature, top_k, top_p, min_p, number, sort_all=True)
        token = torch.where(sampled, drawn, scores.argmax(-1))
        if self._logprobs is not None:
            self._logprobs.write(raw, token)
        return scores.scatter(1, token.unsqueeze(-1), torch.inf)


def _text_ids(state: Any, prompt_tokens: int) -> list[int]:
    """The tokens of the text so far, also after transformers has put the request back."""
    ids: list[int] = state.initial_tokens[prompt_tokens:] + state.generated_tokens
    return ids
