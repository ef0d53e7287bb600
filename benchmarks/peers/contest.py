"""The same prompts for every way of answering them: what a way is, and how one is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

__all__ = ["Answer", "Job", "Run", "Setting", "Submit", "Way", "WrongAnswerError", "replay"]


class WrongAnswerError(Exception):
    """A way does not generate what it is asked for: its speed would say nothing."""


@dataclass(frozen=True)
class Job:
    """One chat to answer, greedily.

    Attributes:
        messages: In the form of OpenAI's chat completions.
        max_tokens: How many tokens the answer has: no end token ends it.
        at_s: When it is submitted, in seconds since the beginning.
    """

    messages: list[dict[str, str]]
    max_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What a way made of a job.

    Attributes:
        text: Without the prompt.
        tokens: How many it generated, as it counts them itself.
    """

    text: str
    tokens: int


@dataclass(frozen=True)
class Setting:
    """What is the same for all ways.

    Attributes:
        model: Folder of a model whose configuration has no end token.
        dtype: "float32" or "bfloat16".
        threads: Of torch, in the process that computes.
        slots: How many prompts are computed at once, where a way can do that.
        broker_url: An empty Redis or Valkey.
    """

    model: Path
    dtype: str
    threads: int
    slots: int
    broker_url: str


#: Submits jobs that come together; each future ends with its answer.
Submit = Callable[[Sequence[Job]], list[Future[Answer]]]

#: Starts what answers, yields how to submit to it, and stops it.
Way = Callable[[Setting], AbstractContextManager[Submit]]


@dataclass(frozen=True)
class Run:
    """How a way did once.

    Attributes:
        tokens: Generated.
        seconds: From the first submission to the last answer.
        latencies_s: Of each job, in the jobs' order.
        texts: The answers, in the jobs' order.
    """

    tokens: int
    seconds: float
    latencies_s: list[float]
    texts: list[str]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds

    def latency_s(self, share: float) -> float:
        """The latency that ``share`` (0 to 1) of the jobs do not exceed."""
        return statistics.quantiles(self.latencies_s, n=1000, method="inclusive")[round(share * 1000) - 1]


def replay(submit: Submit, jobs: Sequence[Job]) -> Run:
    """Submits each job when it is due, and waits for all answers.

    Args:
        submit: Of the way that is timed.
        jobs: In the order of ``at_s``.

    Raises:
        WrongAnswerError: an answer has more tokens or fewer than it was to have.
    """
    ended_at: dict[int, float] = {}
    futures: list[Future[Answer]] = []
    began_at = time.perf_counter()
    for at_s, together in groupby(jobs, key=lambda job: job.at_s):
        time.sleep(max(0.0, began_at + at_s - time.perf_counter()))
        for future in submit(list(together)):
            number = len(futures)
            future.add_done_callback(lambda _, number=number: ended_at.update({number: time.perf_counter()}))  # type: ignore[misc]
            futures.append(future)
    answers = [future.result() for future in futures]
    # A future wakes who waits for it before it calls back.
    while len(ended_at) < len(futures):
        time.sleep(0.001)
    for number, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        if answer.tokens != job.max_tokens:
            raise WrongAnswerError(f"answer {number} has {answer.tokens} tokens, it was to have {job.max_tokens}")
    return Run(
        tokens=sum(answer.tokens for answer in answers),
        seconds=max(ended_at.values()) - began_at,
        latencies_s=[ended_at[number] - began_at - job.at_s for number, job in enumerate(jobs)],
        texts=[answer.text for answer in answers],
    )
