"""Ten prompts of one application beside another's million, and a high prompt behind 10,000 low ones.

Workers have the echo engine, with the pace and the batch that are given.

    python benchmarks/fairness.py --workers 1 4
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from machine import milliseconds, quantile, setting

from promptmill import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker

TEN = 10

#: Prompts of the other application.
MILLION = 1_000_000

#: Low prompts that wait when a high one comes.
LOW = 10_000


def main() -> None:
    """Runs both and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--words-per-s", type=float, default=50.0, help="pace of each prompt")
    parser.add_argument("--max-batch", type=int, default=32, help="slots of each worker")
    parser.add_argument("--words", type=int, default=20, help="length of each text")
    parser.add_argument("--rounds", type=int, default=20, help="times that ten prompts are sent, alone and beside")
    arguments = parser.parse_args()
    pace = ["--echo-tokens-per-s", str(arguments.words_per_s), "--max-batch", str(arguments.max_batch)]
    text = " ".join(["word"] * arguments.words)
    found = {str(workers): _measured(workers, pace, text, arguments.rounds) for workers in arguments.workers}
    print(json.dumps({"arguments": vars(arguments), "workers": found, **setting("celery", "redis")}, indent=2))


def _measured(workers: int, pace: list[str], text: str, rounds: int) -> dict[str, Any]:
    options = ["--engine", "echo", "--model", "echo", "--log-level", "error", *pace]
    with ExitStack() as running:
        broker = running.enter_context(EmbeddedBroker(appendfsync="everysec"))
        for _ in range(workers):
            running.enter_context(LocalWorker(broker.url, options))
        client = running.enter_context(Client(broker.url, model="echo"))
        while len(client.fleet().workers) < workers:
            time.sleep(0.2)
        _ten(client, text)
        alone = [latency for _ in range(rounds) for latency in _ten(client, text)]
        with _map_of_another(broker.url, text):
            beside = [latency for _ in range(rounds) for latency in _ten(client, text)]
        return {
            "ten alone": _shown(alone),
            "ten beside a million": _shown(beside),
            "p95, ratio": round(quantile(beside, 0.95) / quantile(alone, 0.95), 2),
            f"a high one behind {LOW:,} low ones": _behind_low(client, text),
        }


def _ten(client: Client, text: str) -> list[float]:
    """How long each of ten prompts took that are sent at once, in seconds."""
    started = time.perf_counter()
    tasks = [client.submit(text) for _ in range(TEN)]
    return [_waited(task, started) for task in tasks]


def _waited(task: Any, started: float) -> float:
    task.result(timeout_s=300)
    return time.perf_counter() - started


def _shown(latencies: list[float]) -> dict[str, float]:
    return {"median ms": milliseconds(quantile(latencies, 0.5)), "p95 ms": milliseconds(quantile(latencies, 0.95))}


@contextmanager
def _map_of_another(broker_url: str, text: str) -> Iterator[None]:
    """Another application's map that goes on while the block runs; the block begins once its answers come."""
    flows, ends = threading.Event(), threading.Event()

    def run() -> None:
        with Client(broker_url, model="echo") as other, closing(other.map(text for _ in range(MILLION))) as results:
            for number, _ in enumerate(results):
                if number == 500:
                    flows.set()
                if ends.is_set():
                    return

    thread = threading.Thread(target=run)
    thread.start()
    flows.wait(300)
    try:
        yield
    finally:
        ends.set()
        thread.join()


def _behind_low(client: Client, text: str) -> dict[str, float]:
    """How long high prompts take, one after the other, while low ones fill the workers and the queue."""
    tasks = [client.submit(text, priority="low") for _ in range(LOW)]
    latencies = []
    for _ in range(TEN):
        started = time.perf_counter()
        client.generate(text, priority="high")
        latencies.append(time.perf_counter() - started)
    left = client.fleet().models[0].queued
    for task in tasks:
        task.cancel()
    return {**_shown(latencies), "low ones still queued after them": left}


if __name__ == "__main__":
    main()
