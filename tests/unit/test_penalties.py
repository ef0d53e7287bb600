"""Penalties, biases and log-probabilities of single rows, against transformers' own processors and plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from test_sampler import PROMPT, TEXT, VOCABULARY, penalised, row, step
from transformers import RepetitionPenaltyLogitsProcessor

from promptmill.sampling_params import SamplingParams
from promptmill_worker.penalties import Penalties, change, changes_of_rows
from promptmill_worker.sampler import FusedSampler

END_IDS = frozenset({2, 7})


@pytest.fixture
def logits() -> torch.Tensor:
    """One row."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)) * 3


def changed(logits: torch.Tensor, text_ids: list[int], **asked: object) -> torch.Tensor:
    """The row after its penalties."""
    penalties = Penalties.of(SamplingParams(**asked), PROMPT, END_IDS)  # type: ignore[arg-type]
    assert penalties is not None
    for length in range(len(text_ids)):  # as the loop does: token by token
        penalties.after(text_ids[:length])
    where, what = changes_of_rows({0: penalties.after(text_ids)}, logits.device)
    out = logits.clone()
    out[where[1]] = change(out[where[1]], *what)
    return out


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_repetition_penalty_is_transformers_own(logits: torch.Tensor, penalty: float) -> None:
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + TEXT]), logits.unsqueeze(0).clone())[0]
    assert torch.equal(changed(logits, TEXT, repetition_penalty=penalty), expected)


def test_presence_counts_once_and_frequency_each_time_and_both_the_text_alone(logits: torch.Tensor) -> None:
    expected = logits.clone()
    expected[[5, 6, 105]] -= 1.5
    expected[5] -= 2 * 0.5
    expected[[6, 105]] -= 0.5
    assert torch.allclose(changed(logits, TEXT, presence_penalty=1.5, frequency_penalty=0.5), expected)


def test_a_bias_comes_before_the_penalties(logits: torch.Tensor) -> None:
    out = changed(logits, TEXT, logit_bias={5: 50.0, 900: -3.0}, repetition_penalty=2.0, presence_penalty=1.0)
    assert out[5] == pytest.approx((logits[5].item() + 50) / 2 - 1, rel=1e-6)
    assert out[900] == logits[900] - 3
    untouched = [token for token in range(VOCABULARY) if token not in {5, 900, *PROMPT, *TEXT}]
    assert torch.equal(out[untouched], logits[untouched])


def test_no_end_before_min_tokens(logits: torch.Tensor) -> None:
    for length in range(4):
        out = changed(logits, TEXT[:length], min_tokens=3, logit_bias={7: 100.0})
        assert (out[[2, 7]] == -torch.inf).tolist() == [length < 3] * 2
    assert Penalties.of(SamplingParams(min_tokens=3), PROMPT, frozenset()) is None


def test_a_text_that_has_not_begun_is_not_penalised() -> None:
    scores = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(6))
    fresh = row(temperature=0, penalties=Penalties.of(SamplingParams(presence_penalty=2.0), PROMPT, END_IDS))
    sampler = FusedSampler()
    assert step(sampler, [fresh], scores, text_ids=[]) == [scores.argmax()]


def test_what_asks_for_nothing_changes_nothing() -> None:
    assert Penalties.of(SamplingParams(), PROMPT, END_IDS) is None


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_log_probabilities_are_the_models_own_whatever_is_done_to_the_logits(static: bool) -> None:
    scores = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 3
    sampler = FusedSampler(static, VOCABULARY)
    rows = [row(seed=3), penalised({"logit_bias": {8: 100.0}}, temperature=0.3, logprobs=4), row(logprobs=0)]
    tokens = step(sampler, rows, scores)
    assert tokens[1] == 8
    assert sampler.chances("0") is None
    expected = scores.log_softmax(-1)
    chances, alone = sampler.chances("1"), sampler.chances("2")
    assert chances is not None
    assert alone is not None
    assert chances.logprob == pytest.approx(expected[1, 8].item(), abs=1e-5)
    assert [token for token, _ in chances.top] == expected[1].topk(4).indices.tolist()
    assert [value for _, value in chances.top] == pytest.approx(expected[1].topk(4).values.tolist(), abs=1e-5)
    assert (alone.logprob, alone.top) == (pytest.approx(expected[2, tokens[2]].item(), abs=1e-5), [])


def test_changes_of_one_static_step_are_gone_in_the_next() -> None:
    scores = torch.zeros(2, VOCABULARY)
    sampler = FusedSampler(True, VOCABULARY)
    assert step(sampler, [row(temperature=0), penalised({"logit_bias": {8: 9.0}}, temperature=0)], scores) == [0, 8]
    assert step(sampler, [row(temperature=0), row(temperature=0)], scores) == [0, 0]
