"""The comparison in benchmarks/peers times only what was asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "peers"))

import contest

JOBS = [contest.Job([{"role": "user", "content": "Hi"}], max_tokens) for max_tokens in (3, 5)]


def _answers(*tokens: int) -> contest.Submit:
    def submit(jobs: Sequence[contest.Job]) -> list[Future[contest.Answer]]:
        futures: list[Future[contest.Answer]] = [Future() for _ in jobs]
        for future, count in zip(futures, tokens, strict=True):
            future.set_result(contest.Answer("text", count))
        return futures

    return submit


def test_a_run_counts_the_tokens_that_were_generated() -> None:
    run = contest.replay(_answers(3, 5), JOBS)
    assert run.tokens == 8
    assert run.texts == ["text", "text"]


@pytest.mark.parametrize("tokens", [(3, 4), (3, 6), (0, 5)])
def test_an_answer_of_another_length_ends_the_comparison(tokens: tuple[int, int]) -> None:
    with pytest.raises(contest.WrongAnswerError, match="tokens, it was to have"):
        contest.replay(_answers(*tokens), JOBS)
