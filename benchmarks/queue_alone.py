"""The queue alone: how many no-op prompts a second go through client, broker and one worker, and back.

python benchmarks/queue_alone.py --prompts 20000 --chunk-size 256
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from importlib.metadata import version

import redis

from promptmill import Client
from promptmill.broker import connect
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill.settings import ClientSettings

#: Length of one prompt, in bytes.
PROMPT_BYTES = 168


class PeakMemory:
    """The most memory that the broker used for data while a block ran, over what it used before."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._ended = threading.Event()
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._before = self._used()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self._used() - self._before)

    def _used(self) -> int:
        return int(self._client.info("memory")["used_memory_dataset"])


def main() -> None:
    """Runs the benchmark and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--max-in-flight", type=int, default=2048, help="the client's window")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    options = ["--engine", "echo", "--model", "echo", "--max-in-flight", "512", "--log-level", "error"]
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        LocalWorker(broker.url, options) as worker,
        Client(broker.url, model="echo") as client,
        connect(ClientSettings.read(broker_url=broker.url)) as watcher,
    ):
        worker.wait_until_ready(client)

        def run(prompts: int) -> float:
            started = time.perf_counter()
            given = ("x" * PROMPT_BYTES for _ in range(prompts))
            answered = sum(
                result.finish_reason is not None
                for result in client.map(
                    given,
                    max_tokens=8,
                    chunk_size=arguments.chunk_size,
                    max_in_flight=arguments.max_in_flight,
                )
            )
            assert answered == prompts
            return prompts / (time.perf_counter() - started)

        run(1000)
        with PeakMemory(watcher) as memory:
            speeds = [run(arguments.prompts) for _ in range(arguments.rounds)]
    print(
        json.dumps(
            {
                "prompts_per_s": round(statistics.median(speeds)),
                "spread": [round(speed) for speed in sorted(speeds)],
                "broker_peak_bytes": memory.peak_bytes,
                "prompts": arguments.prompts,
                "chunk_size": arguments.chunk_size,
                "max_in_flight": arguments.max_in_flight,
                "appendfsync": "everysec",
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "versions": {name: version(name) for name in ("promptmill", "celery", "redis")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
