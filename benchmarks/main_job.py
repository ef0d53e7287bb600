"""The main job, three ways, on one machine in one run: tokens a second, and their ratios.

- in-process: our engine alone, 64 prompts at once;
- queue: the same engine in a worker, 64 prompts submitted one by one through the broker;
- naive: a Celery task that calls ``generate()`` for one prompt, solo pool.

The same model, prompts (GSM8K, as chats), ``max_tokens``, precision and threads for all; greedy, and the texts are
compared. Rounds are interleaved, medians reported.

    python benchmarks/main_job.py --dtype float32 --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celery import Celery, group

from promptmill import Client, watchdog
from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill.protocol import GenerationRequest
from promptmill_worker import Engine
from promptmill_worker.gguf import converted_copy
from promptmill_worker.settings import EngineSettings

PROMPTS = 64
DATA = Path(__file__).parent.parent / "tests" / "data" / "gsm8k_64.jsonl"


@dataclass(frozen=True)
class Job:
    """One prompt of the job."""

    messages: list[dict[str, str]]
    max_tokens: int


@dataclass(frozen=True)
class Run:
    """What one way of doing the job came to."""

    texts: list[str]
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


def jobs(workload: str, turn: int) -> list[Job]:
    """64 questions, each with a length of its own.

    Args:
        workload: "short": each question's first sentence, 8 to 64 tokens of answer; "gsm8k": the whole question, 8 to
            128 tokens.
        turn: Goes into each prompt: or a later round would find its prompts' keys in the engine's cache, which the
            naive worker does not have.
    """
    draw = random.Random(7)
    questions = [json.loads(line)["question"] for line in DATA.read_text(encoding="utf-8").splitlines()[:PROMPTS]]
    if workload == "short":
        questions = [question.split(".")[0] + "." for question in questions]
    most = 64 if workload == "short" else 128
    return [
        Job([{"role": "user", "content": f"Round {turn}. {question}"}], draw.randint(8, most)) for question in questions
    ]


def timed(work: Callable[[], list[tuple[str, int]]]) -> Run:
    """Runs ``work``, which returns (text, tokens) of each prompt."""
    started = time.perf_counter()
    answers = work()
    return Run([text for text, _ in answers], sum(tokens for _, tokens in answers), time.perf_counter() - started)


def in_process(engine: Engine, work: list[Job]) -> list[tuple[str, int]]:
    """The engine alone."""
    futures = [
        engine.submit(GenerationRequest.of(messages=job.messages, max_tokens=job.max_tokens, temperature=0.0))
        for job in work
    ]
    return [(r.text, r.usage.completion_tokens) for r in (future.result() for future in futures)]


def through_queue(client: Client, work: list[Job]) -> list[tuple[str, int]]:
    """One ``submit`` a prompt."""
    tasks = [client.submit(messages=job.messages, max_tokens=job.max_tokens, temperature=0.0) for job in work]
    return [(r.text, r.usage.completion_tokens) for r in (task.result() for task in tasks)]


def naively(app: Celery, work: list[Job]) -> list[tuple[str, int]]:
    """One Celery task a prompt."""
    signature = app.signature("naive.generate")
    results = group(signature.clone(args=(job.messages, job.max_tokens)) for job in work).apply_async()
    return [(answer["text"], answer["tokens"]) for answer in results.get()]


@contextmanager
def naive_app(broker_url: str, folder: str, dtype: str, threads: int) -> Iterator[Celery]:
    """A running naive worker."""
    variables = {
        "NAIVE_BROKER": broker_url,
        "NAIVE_MODEL": folder,
        "NAIVE_DTYPE": dtype,
        "NAIVE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "celery", "-A", "naive_worker", "worker", "--pool", "solo", "-l", "error"]
    process = watchdog.start_watched(
        command,
        10.0,
        env={**os.environ, **variables},
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    app = Celery(broker=broker_url, backend=broker_url, set_as_current=False)
    app.conf.task_default_queue = "naive"
    try:
        while not app.control.ping(timeout=1.0, destination=[f"celery@{platform.node()}"]):
            if process.poll() is not None:
                raise SystemExit("the naive worker ended before it was ready")
        yield app
    finally:
        watchdog.ask_to_stop(process)


def report(runs: dict[str, list[Run]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians, ratios, and what they were measured on."""
    speeds = {name: statistics.median(run.tokens_per_s for run in of_name) for name, of_name in runs.items()}
    reference = runs["in-process"][0].texts
    return {
        "tokens_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "spread": {
            name: [round(run.tokens_per_s, 1) for run in sorted(of_name, key=lambda run: run.tokens_per_s)]
            for name, of_name in runs.items()
        },
        "queue / in-process": round(speeds["queue"] / speeds["in-process"], 3),
        "queue / naive": round(speeds["queue"] / speeds["naive"], 2),
        "texts equal to in-process": {
            name: sum(a == b for a, b in zip(of_name[0].texts, reference, strict=True))
            for name, of_name in runs.items()
        },
        "workload": arguments.workload,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "prompts": PROMPTS,
        "tokens": runs["in-process"][0].tokens,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("promptmill", "celery", "torch", "transformers")},
    }


def main() -> None:
    """Runs the comparison and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", default="short", choices=["short", "gsm8k"])
    arguments = parser.parse_args()

    model = str(demo_model_path())
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    options = ["--model", model, "--served-name", "smollm2", "--dtype", arguments.dtype]
    options += ["--threads", str(arguments.threads), "--log-level", "error"]
    runs: dict[str, list[Run]] = {}
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        Engine.load(model, dtype=arguments.dtype, threads=arguments.threads) as engine,
        LocalWorker(broker.url, options) as worker,
        Client(broker.url, model="smollm2") as client,
    ):
        worker.wait_until_ready(client)
        folder = str(converted_copy(Path(model), EngineSettings.read(model=model).cache_dir))
        with naive_app(broker.url, folder, arguments.dtype, arguments.threads) as app:
            ways: dict[str, Callable[[list[Job]], list[tuple[str, int]]]] = {
                "in-process": partial(in_process, engine),
                "queue": partial(through_queue, client),
                "naive": partial(naively, app),
            }
            for way in ways.values():
                way(jobs(arguments.workload, 0)[:2])  # warms up
            for turn in range(1, arguments.rounds + 1):
                for name, way in ways.items():
                    runs.setdefault(name, []).append(timed(partial(way, jobs(arguments.workload, turn))))
                    print(f"{name}: {runs[name][-1].tokens_per_s:.1f} tokens/s", file=sys.stderr)
    print(json.dumps(report(runs, arguments), indent=2))


if __name__ == "__main__":
    main()
