"""promptmill's queue beside plain Celery on one broker: the same prompts through a task that does nothing.

Ours: ``Client.map`` and ``Client.generate`` through a worker with the echo engine. Celery's: ``group`` with
``iter_native``, and ``delay().get()``, through a threads worker with a no-op task of its own application. Both workers
run all the time; rounds take turns.

    python benchmarks/against_celery.py --prompts 10000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from celery import group
from machine import milliseconds, quantile, ratio, setting, spread

from promptmill import Client, GenerationResult, PromptmillError, watchdog
from promptmill.broker import connect
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill.settings import ClientSettings

CHUNK = 32
PROMPT = "x" * 168
THREADS = 10

#: Prompts that are queued to weigh them.
QUEUED = 6_400

#: Commands that the workers send while there is nothing to do are counted for so long, in seconds.
IDLE_S = 3.0


def main() -> None:
    """Runs the comparison and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--single", type=int, default=300, help="prompts one by one, a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    options = ["--engine", "echo", "--model", "echo", "--max-batch", "512", "--log-level", "error"]
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        noop_worker(broker.url),
        LocalWorker(broker.url, options) as worker,
        Client(broker.url, model="echo") as client,
        connect(ClientSettings.read(broker_url=broker.url)) as watcher,
    ):
        worker.wait_until_ready(client)
        from noop_app import noop  # its broker is known only now

        noop.delay("warm").get(timeout=60)
        ours, celerys = Ours(client), Celerys(noop)
        figures = {
            "many": many(ours, celerys, arguments.prompts, arguments.rounds),
            "one by one": one_by_one(client, noop, arguments.single, arguments.rounds),
            "traffic a prompt": {
                "promptmill, chunks of 32": traffic(watcher, lambda: ours.run(3200, CHUNK), 3200),
                "celery, group": traffic(watcher, lambda: celerys.run(3200), 3200),
            },
            "bytes a queued prompt, beyond its text": queued_bytes(watcher, broker.url, noop),
            **setting("celery", "redis"),
        }
    print(json.dumps(figures, indent=2))


@contextmanager
def noop_worker(broker_url: str) -> Iterator[None]:
    """Plain Celery's worker, on threads."""
    os.environ["NOOP_BROKER"] = broker_url
    command = [sys.executable, "-m", "celery", "-A", "noop_app", "worker", "-P", "threads", "-c", str(THREADS)]
    folder = Path(__file__).parent
    process = watchdog.start_watched(
        [*command, "--loglevel", "error", "--without-gossip", "--without-mingle"],
        10.0,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        watchdog.ask_to_stop(process)


class Ours:
    """Runs prompts through ``Client.map``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, prompts: int, chunk_size: int | None = None) -> tuple[float, float]:
        """Returns how long it took until all were submitted, and until all were answered, in seconds."""
        submitted_s = 0.0
        started = time.perf_counter()

        def given() -> Iterator[str]:
            nonlocal submitted_s
            yield from (PROMPT for _ in range(prompts))
            submitted_s = time.perf_counter() - started

        results = self._client.map(given(), max_tokens=8, chunk_size=chunk_size, max_in_flight=prompts)
        answered = sum(result.error is None for result in results)
        assert answered == prompts
        return submitted_s, time.perf_counter() - started


class Celerys:
    """Runs prompts through a group."""

    def __init__(self, noop: Any) -> None:
        self._noop = noop

    def run(self, prompts: int) -> tuple[float, float]:
        """As ``Ours.run``."""
        started = time.perf_counter()
        result = group(self._noop.s(PROMPT) for _ in range(prompts)).apply_async()
        submitted_s = time.perf_counter() - started
        answered = sum(1 for _ in result.iter_native())
        assert answered == prompts
        ended = time.perf_counter()
        result.forget()
        return submitted_s, ended - started


def many(ours: Ours, celerys: Celerys, prompts: int, rounds: int) -> dict[str, Any]:
    """Prompts a second, submitted and end to end."""
    ours.run(1000)
    celerys.run(1000)
    runs = [(ours.run(prompts), celerys.run(prompts)) for _ in range(rounds)]
    found: dict[str, Any] = {"prompts": prompts}
    for place, name in enumerate(("submitted a second", "end to end a second")):
        our_speeds = [prompts / mine[place] for mine, _ in runs]
        their_speeds = [prompts / theirs[place] for _, theirs in runs]
        found[name] = {
            "promptmill": spread(our_speeds),
            "celery group": spread(their_speeds),
            "ratio": ratio(our_speeds, their_speeds),
        }
    return found


def one_by_one(client: Client, noop: Any, prompts: int, rounds: int) -> dict[str, Any]:
    """Latency of one prompt on an idle queue, in milliseconds."""
    ways: dict[str, Callable[[], object]] = {
        "promptmill": lambda: client.generate(PROMPT, max_tokens=8),
        "celery": lambda: noop.delay(PROMPT).get(timeout=60),
    }
    latencies: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for _ in range(prompts):
                started = time.perf_counter()
                way()
                latencies[name].append(time.perf_counter() - started)
    return {
        name: {"median ms": milliseconds(quantile(seen, 0.5)), "p99 ms": milliseconds(quantile(seen, 0.99))}
        for name, seen in latencies.items()
    }


def traffic(watcher: redis.Redis, run: Callable[[], object], prompts: int) -> dict[str, float]:
    """What a prompt costs the broker: commands that clients send, commands within scripts, and bytes.

    What idle workers send in that time is taken off.
    """
    found = {}
    for count in (_commands, _bytes):  # one after the other: what is monitored is sent to us, too
        idle, idle_s = count(watcher, lambda: time.sleep(IDLE_S))
        busy, busy_s = count(watcher, run)
        found.update({name: round((busy[name] - idle[name] * busy_s / idle_s) / prompts, 2) for name in busy})
    return found


def _commands(watcher: redis.Redis, run: Callable[[], object]) -> tuple[dict[str, int], float]:
    counted = {"commands sent": 0, "commands within scripts": 0}
    with watcher.monitor() as monitor:  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        run()
        took_s = time.perf_counter() - started
        watcher.echo("the end")
        for seen in monitor.listen():
            if seen["command"] == "ECHO the end":
                return counted, took_s
            counted["commands within scripts" if seen["client_type"] == "lua" else "commands sent"] += 1
    raise RuntimeError("the broker has closed the connection")


def _bytes(watcher: redis.Redis, run: Callable[[], object]) -> tuple[dict[str, int], float]:
    fields = {"bytes to the broker": "total_net_input_bytes", "bytes from the broker": "total_net_output_bytes"}
    before = watcher.info("stats")
    started = time.perf_counter()
    run()
    took_s = time.perf_counter() - started
    after = watcher.info("stats")
    return {name: after[field] - before[field] for name, field in fields.items()}, took_s


def queued_bytes(watcher: redis.Redis, broker_url: str, noop: Any) -> dict[str, int]:
    """Memory of the broker a prompt that waits, beyond its text, for models and queues that nobody serves."""
    before = _memory(watcher)
    with Client(broker_url, model="nobody") as client:
        for _ in range(QUEUED):
            client.submit(PROMPT, max_tokens=8)
        single = _memory(watcher) - before
    before = _memory(watcher)
    with Client(broker_url, model="nobody-either") as client:
        results = client.map([PROMPT] * QUEUED, max_tokens=8, chunk_size=CHUNK, max_in_flight=QUEUED)
        reader = threading.Thread(target=_read, args=(results,))
        reader.start()
        while (
            sum(model.queued for model in client.fleet().models if model.name == client.settings.model) < QUEUED / CHUNK
        ):
            time.sleep(0.1)
        in_chunks = _memory(watcher) - before
    reader.join()
    before = _memory(watcher)
    for _ in range(QUEUED):
        noop.apply_async((PROMPT,), queue="nobody")
    theirs = _memory(watcher) - before
    totals = {"promptmill, chunks of 32": in_chunks, "promptmill, submit": single, "celery": theirs}
    return {name: round(total / QUEUED) - len(PROMPT) for name, total in totals.items()}


def _read(results: Iterator[GenerationResult]) -> None:
    with suppress(PromptmillError):  # its client is closed
        list(results)


def _memory(watcher: redis.Redis) -> int:
    return int(watcher.info("memory")["used_memory"])


if __name__ == "__main__":
    main()
