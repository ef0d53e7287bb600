"""What the ways are timed on: questions of GSM8K, and a trace of a production service."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from pathlib import Path

from contest import Job

__all__ = ["CONTEXT_SCALE", "GENERATED_SCALE", "WORKLOADS", "trace"]

DATA = Path(__file__).parent.parent.parent / "tests" / "data"

#: By what the trace's tokens are divided, so that a model on two cores keeps up with it.
CONTEXT_SCALE, GENERATED_SCALE = 8, 8

SYSTEM = "You are a patient teacher of mathematics at a primary school. "


def _questions(count: int, turn: int) -> list[str]:
    """``turn`` goes into each: or a later round would find its prompts' keys in a cache that others do not have."""
    lines = (DATA / "gsm8k_660.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [f"Round {turn}. {json.loads(line)['question']}" for line in lines]


def _chat(question: str, system: str = "") -> list[dict[str, str]]:
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]


def mixed(turn: int) -> list[Job]:
    """64 questions at once, answers of 8 to 64 tokens."""
    draw = random.Random(7)
    return [Job(_chat(question), draw.randint(8, 64)) for question in _questions(64, turn)]


def shared_prefix(turn: int) -> list[Job]:
    """64 short questions at once behind one system prompt of about 300 tokens, answers of 16 tokens."""
    system = f"Round {turn}. " + 25 * SYSTEM
    return [Job(_chat(question.split(".")[1], system), 16) for question in _questions(64, turn)]


def long_tail(turn: int) -> list[Job]:
    """60 questions at once; one answer in twenty has 320 tokens, the others 16."""
    return [
        Job(_chat(question), 320 if number % 20 == 7 else 16) for number, question in enumerate(_questions(60, turn))
    ]


#: Name → jobs of a round.
WORKLOADS: dict[str, Callable[[int], list[Job]]] = {
    "mixed": mixed,
    "shared-prefix": shared_prefix,
    "long-tail": long_tail,
}


def trace(turn: int, count: int, requests_per_s: float) -> list[Job]:
    """The first ``count`` requests of the Azure trace, with their gaps and sizes in proportion.

    Args:
        turn: Goes into each prompt.
        count: How many.
        requests_per_s: The mean rate that the arrival times are stretched to.
    """
    with (DATA / "azure_conv_trace.csv").open(encoding="utf-8", newline="") as file:
        rows = list(islice(csv.DictReader(file), count))
    arrivals = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    length_s = (arrivals[-1] - arrivals[0]).total_seconds()
    stretch = (count - 1) / requests_per_s / length_s
    words = " ".join(_questions(660, turn)).split()
    draw = random.Random(11)
    jobs = []
    for row, arrival in zip(rows, arrivals, strict=True):
        # A word of these questions is about 1.3 tokens.
        size = max(4, round(int(row["ContextTokens"]) / CONTEXT_SCALE / 1.3))
        begin = draw.randrange(len(words) - size)
        text = f"Round {turn}. " + " ".join(words[begin : begin + size])
        max_tokens = max(2, round(int(row["GeneratedTokens"]) / GENERATED_SCALE))
        jobs.append(Job(_chat(text), max_tokens, (arrival - arrivals[0]).total_seconds() * stretch))
    return jobs
