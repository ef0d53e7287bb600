"""Workers of four precisions behind the queue, against the float32 engine alone: tokens a second, interleaved."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from workload import chats, requests

from promptmill import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.settings import EngineSettings

__all__ = ["measure"]

IN_FLIGHT = 32
TOKENS = 16

#: How long a worker may take to load and answer a first prompt, in seconds.
START_TIMEOUT_S = 300.0

#: Name of a worker → its options.
WORKERS = {
    "float32": ("--dtype", "float32"),
    "bfloat16": ("--dtype", "bfloat16"),
    "bnb-8bit": ("--quantization", "bnb-8bit"),
    "bnb-4bit": ("--quantization", "bnb-4bit"),
}


def measure(checkpoint: Checkpoint, settings: EngineSettings, rounds: int) -> dict[str, Any]:
    """Median tokens/s of 32 prompts at once, and the ratio to the engine alone."""
    speeds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        engine = stack.enter_context(ContinuousEngine(checkpoint, settings.model_copy(update={"max_batch": IN_FLIGHT})))
        broker = stack.enter_context(EmbeddedBroker(appendfsync="everysec"))
        ways: dict[str, Callable[[str], None]] = {"in-process": lambda turn: _in_process(engine, turn)}
        for name, options in WORKERS.items():
            client = _client(stack, broker.url, settings, name, options)
            ways[name] = lambda turn, client=client: _through_queue(client, turn)  # type: ignore[misc]
        for turn in range(rounds):
            for name, way in ways.items():
                began_at = time.perf_counter()
                way(f"{turn}")
                speeds.setdefault(name, []).append(IN_FLIGHT * TOKENS / (time.perf_counter() - began_at))
                print(f"{name}: {speeds[name][-1]:.1f} tokens/s", file=sys.stderr)
    medians = {name: statistics.median(of_name) for name, of_name in speeds.items()}
    return {
        name: {"tokens/s": round(speed, 1), "ratio": round(speed / medians["in-process"], 2)}
        for name, speed in medians.items()
    }


def _client(stack: ExitStack, url: str, settings: EngineSettings, name: str, options: tuple[str, ...]) -> Client:
    """A client of a worker of its own that has answered a first prompt."""
    common = ["--model", settings.model, "--served-name", name, "--threads", str(settings.threads or 1)]
    stack.enter_context(LocalWorker(url, [*common, *options, "--measure-s", "0", "--log-level", "error"]))
    client = stack.enter_context(Client(url, model=name))
    client.submit("a", max_tokens=2).result(timeout_s=START_TIMEOUT_S)
    return client


def _in_process(engine: ContinuousEngine, turn: str) -> None:
    for future in [engine.submit(request) for request in requests(IN_FLIGHT, turn, TOKENS)]:
        future.result()


def _through_queue(client: Client, turn: str) -> None:
    work = requests(IN_FLIGHT, turn, TOKENS)
    tasks = [
        client.submit(messages=chat, params=request.sampling)
        for chat, request in zip(chats(IN_FLIGHT, turn), work, strict=True)
    ]
    for task in tasks:
        task.result()
