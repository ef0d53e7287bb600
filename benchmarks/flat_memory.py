"""Memory of client, worker and broker while any number of no-op prompts go through ``Client.map``.

python benchmarks/flat_memory.py --prompts 1000000
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from machine import setting

from promptmill import Client
from promptmill.broker import connect
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill.settings import ClientSettings

#: Length of one prompt, in bytes.
PROMPT_BYTES = 168


def main() -> None:
    """Runs the prompts, prints a line for each tenth, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    options = ["--engine", "echo", "--model", "echo", "--max-batch", "512", "--log-level", "error"]
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        LocalWorker(broker.url, options) as worker,
        Client(broker.url, model="echo") as client,
        connect(ClientSettings.read(broker_url=broker.url)) as watcher,
    ):
        pid = int(worker.wait_until_ready(client).name.rpartition("-")[2])
        started = time.perf_counter()
        points = []
        given = (f"{number:>{PROMPT_BYTES}}" for number in range(arguments.prompts))
        for number, result in enumerate(client.map(given, max_tokens=8), start=1):
            assert result.index == number - 1
            if number % (arguments.prompts // 10) == 0 or number == arguments.prompts // 50:
                points.append(
                    {
                        "prompts": number,
                        "client MB": _resident_mb("self"),
                        "worker MB": _resident_mb(str(pid)),
                        "broker's data MB": round(watcher.info("memory")["used_memory"] / 1e6, 1),
                        "prompts/s": round(number / (time.perf_counter() - started)),
                    }
                )
                print(json.dumps(points[-1]), flush=True)
        left = sum(1 for _ in watcher.scan_iter(count=1000))
    print(json.dumps({"points": points, "keys left": left, **setting("celery", "redis")}, indent=2))


def _resident_mb(process: str) -> float:
    for line in Path("/proc", process, "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1000, 1)
    raise RuntimeError(f"process {process} has no memory")


if __name__ == "__main__":
    main()
