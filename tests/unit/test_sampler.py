"""The fused sampler against transformers' own warpers and against softmax."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from promptmill.sampling_params import SamplingParams
from promptmill_worker.drawing import draw, kept_floor, uniform
from promptmill_worker.penalties import Penalties
from promptmill_worker.sampler import FusedSampler, RowSampling

VOCABULARY = 2_000

#: What each row has behind it in a step.
PROMPT, TEXT = list(range(100, 110)), [5, 6, 5, 105]

MIXES = [
    # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.7, 1, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 700, 1.0, 0.0),  # more than the candidates that are looked at first
    (1.0, 5_000, 1.0, 0.0),  # more than there are
    (0.3, 0, 0.5, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.0, 0, 0.99, 0.0),  # a nucleus larger than the candidates
    (1.0, 0, 1e-6, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.8, 50, 0.9, 0.05),
    (1.5, 600, 0.8, 0.001),
    (1.0, 3, 0.999, 0.9),
]


def columns(mixes: list[tuple[float, ...]]) -> list[torch.Tensor]:
    """One tensor for each parameter, a row for each mix."""
    return list(torch.tensor(mixes, dtype=torch.float32).T.contiguous())


def kept_by_transformers(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float):
    """Which tokens of one row its own warpers keep, in the order that generate() applies them."""
    scores = TemperatureLogitsWarper(temperature)(None, logits.unsqueeze(0))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    return scores[0] > -torch.inf


@pytest.mark.parametrize("sort_all", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_the_kept_tokens_are_those_of_transformers_warpers(sort_all: bool, spread: float) -> None:
    generator = torch.Generator().manual_seed(int(spread * 10))
    logits = torch.randn(len(MIXES), VOCABULARY, generator=generator) * spread
    temperature, top_k, top_p, min_p = columns(MIXES)
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)
    kept = scaled >= kept_floor(scaled, top_k, top_p, min_p, sort_all).unsqueeze(-1)
    for row, mix in enumerate(MIXES):
        assert torch.equal(kept[row], kept_by_transformers(logits[row], *mix)), mix


def test_every_token_that_ties_with_the_last_kept_one_is_kept() -> None:
    scaled = torch.tensor([[0.0, -1.0, -1.0, -1.0, -2.0]])
    floor = kept_floor(scaled, torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0]))
    assert (scaled >= floor.unsqueeze(-1)).tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("sort_all", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mix", [(1.0, 0, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.5, 8, 1.0, 0.02)])
def test_drawn_frequencies_pass_a_chi_square_test_against_softmax(mix: tuple[float, ...], sort_all: bool) -> None:
    draws = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    numbers = torch.tensor([uniform(7, 0, position) for position in range(draws)])
    temperature, top_k, top_p, min_p = (column.expand(draws) for column in columns([mix]))
    tokens = draw(logits.repeat(draws, 1), temperature, top_k, top_p, min_p, numbers, sort_all)
    kept = kept_by_transformers(logits, *mix)
    expected = (logits / mix[0]).masked_fill(~kept, -torch.inf).softmax(-1) * draws
    seen = tokens.bincount(minlength=12).float()
    assert seen[~kept].sum() == 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    assert chi_square < 35  # 0.9998 quantile at 11 degrees of freedom


@pytest.mark.parametrize("number", [uniform(0, 0, 0), 2**-24, 1 - 2**-24])
def test_no_uniform_number_draws_a_token_outside_the_kept_ones(number: float) -> None:
    logits = torch.tensor([[-50.0, 3.0, 2.0, -60.0, 2.5, -70.0]])
    one = torch.ones(1)
    token = draw(logits, one, torch.tensor([3.0]), one, torch.zeros(1), torch.tensor([number]))
    assert token.item() in {1, 2, 4}


def test_uniform_numbers_are_spread_evenly_over_seeds_choices_and_positions() -> None:
    for numbers in (
        [uniform(seed, 0, 0) for seed in range(4_000)],
        [uniform(1, choice, 0) for choice in range(4_000)],
        [uniform(1, 0, position) for position in range(4_000)],
    ):
        counts = torch.histc(torch.tensor(numbers), bins=20, min=0, max=1)
        assert ((counts - 200) ** 2 / 200).sum() < 60
        assert 0 < min(numbers) < max(numbers) < 1
    assert len({uniform(s, c, p) for s in range(20) for c in range(20) for p in range(20)}) > 7_990


def test_a_uniform_number_is_the_same_on_every_machine() -> None:
    assert uniform(0, 0, 0) == 0.13870936632156372
    assert uniform(2**63 - 1, 127, 100_000) == 0.13269072771072388


def row(**changes: float) -> RowSampling:
    """A sampled row, with changes."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1, "choice": 0}
    return RowSampling(**{**defaults, "prompt_tokens": 10, **changes})  # type: ignore[arg-type]


def penalised(changes: dict[str, Any], **options: float) -> RowSampling:
    """A row with penalties."""
    return row(penalties=Penalties.of(SamplingParams(**changes), PROMPT, frozenset({2, 7})), **options)


def step(
    sampler: FusedSampler, rows: list[RowSampling], scores: torch.Tensor, text_ids: Sequence[int] = TEXT
) -> list[int]:
    """The tokens that the loop would take for one step of ``rows``."""
    requests = [
        SimpleNamespace(
            has_new_token=True,
            state=SimpleNamespace(
                logit_processor_kwargs={"row": row},
                position_offset=10,
                request_id=str(number),
                initial_tokens=PROMPT,
                generated_tokens=list(text_ids),
            ),
        )
        for number, row in enumerate(rows)
    ]
    storage = torch.empty((sampler.tensors_required, 64), dtype=torch.int32)
    sampler.fill_defaults(storage[:, :1])
    sampler.prepare_tensor_args(requests, storage)
    return sampler(torch.empty(0), scores.clone(), storage[:, : len(rows)]).argmax(-1).tolist()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_row_draws_the_same_token_alone_and_among_others(static: bool) -> None:
    rows = [
        row(temperature=0.0),
        row(seed=2),
        row(seed=3, top_p=0.9),
        row(temperature=0.0, seed=4),
        row(seed=5, top_k=300, temperature=1.7),
        row(seed=6, min_p=0.01, choice=3),
        penalised({"repetition_penalty": 1.7}, temperature=0.0),
        penalised({"presence_penalty": 1.5, "frequency_penalty": -0.5}, seed=7),
        penalised({"logit_bias": {8: 9.0, 9: 10.0}, "min_tokens": 9}, seed=8, logprobs=3),
        row(seed=9, logprobs=0),
        penalised({"frequency_penalty": 1.0}, temperature=0.0),
    ]
    scores = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    together = step(FusedSampler(static, VOCABULARY), rows, scores)
    alone = [step(FusedSampler(static, VOCABULARY), [row], scores[i : i + 1])[0] for i, row in enumerate(rows)]
    backwards = step(FusedSampler(static, VOCABULARY), rows[::-1], scores.flip(0))[::-1]
    assert together == alone == backwards
    assert together == step(FusedSampler(not static, VOCABULARY), rows, scores)
    assert [together[0], together[3]] == [scores[0].argmax(), scores[3].argmax()]


def test_a_batch_of_greedy_rows_is_left_untouched() -> None:
    sampler = FusedSampler()
    scores = torch.randn(2, VOCABULARY)
    before = scores.clone()
    requests = [
        SimpleNamespace(has_new_token=True, state=SimpleNamespace(logit_processor_kwargs={}, position_offset=1))
    ] * 2
    storage = torch.zeros((5, 8), dtype=torch.int32)
    sampler.prepare_tensor_args(requests, storage)
    assert sampler(torch.empty(0), scores, storage[:, :2]) is scores
    assert torch.equal(scores, before)
    assert not storage.any()


def test_rows_still_in_prefill_get_no_numbers() -> None:
    sampler = FusedSampler()
    waiting = SimpleNamespace(has_new_token=False, state=None)
    ready = SimpleNamespace(
        has_new_token=True,
        state=SimpleNamespace(logit_processor_kwargs={"row": row(seed=9)}, position_offset=12, request_id="1"),
    )
    storage = torch.zeros((5, 8), dtype=torch.int32)
    sampler.prepare_tensor_args([waiting, ready], storage)
    assert storage.view(torch.float32)[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, uniform(9, 0, 2)]
    assert not storage[:, 1:].any()
