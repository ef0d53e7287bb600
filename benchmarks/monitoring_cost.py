"""What watching costs: tokens a second of the real model with everything on, and with nothing.

On: the worker's metrics page, the monitor (Flower with the fleet page, somebody looking at it), and Prometheus scraping
both each five seconds. Off: the worker alone. Each round starts both anew, one after the other.

    python benchmarks/monitoring_cost.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from machine import ratio, setting, spread

from promptmill import Client, watchdog
from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker

DATA = Path(__file__).parent.parent / "tests" / "data" / "gsm8k_64.jsonl"

WORKER_PORT, FLEET_PORT, MONITOR_PORT, PROMETHEUS_PORT = 19464, 19463, 15555, 19090

SCRAPE_S = 5


def main() -> None:
    """Runs the comparison and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    chats = [[{"role": "user", "content": json.loads(line)["question"]}] for line in DATA.read_text().splitlines()]
    with_all, alone = [], []
    for _ in range(arguments.rounds):
        alone.append(_tokens_per_s(chats, arguments.max_tokens, watched=False))
        with_all.append(_tokens_per_s(chats, arguments.max_tokens, watched=True))
        print(f"alone {alone[-1]:.1f}, watched {with_all[-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        "tokens/s, watched": spread(with_all),
        "tokens/s, alone": spread(alone),
        "ratio": ratio(with_all, alone),
        "prometheus": shutil.which("prometheus") is not None,
        **setting("celery", "flower", "torch", "transformers"),
    }
    print(json.dumps(figures, indent=2))


def _tokens_per_s(chats: list[Any], max_tokens: int, *, watched: bool) -> float:
    options = ["--model", str(demo_model_path()), "--served-name", "smollm2", "--threads", "1", "--measure-s", "0"]
    options += ["--dtype", "float32", "--log-level", "error"]
    if watched:
        options += ["--metrics-port", str(WORKER_PORT)]
    with ExitStack() as running:
        broker = running.enter_context(EmbeddedBroker(appendfsync="everysec"))
        worker = running.enter_context(LocalWorker(broker.url, options))
        client = running.enter_context(Client(broker.url, model="smollm2"))
        worker.wait_until_ready(client)
        if watched:
            running.enter_context(_watchers(broker.url))
        list(client.map(chats[:4], max_tokens=4, temperature=0.0))
        started = time.perf_counter()
        results = client.map(chats, max_tokens=max_tokens, temperature=0.0, ordered=False)
        tokens = sum(result.usage.completion_tokens for result in results)
        return tokens / (time.perf_counter() - started)


@contextmanager
def _watchers(broker_url: str) -> Iterator[None]:
    """Monitor, Prometheus, and somebody who looks at the fleet page."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        environment = {
            **os.environ,
            "PROMPTMILL_BROKER_URL": broker_url,
            "PROMPTMILL_LISTEN_PORT": str(MONITOR_PORT),
            "PROMPTMILL_METRICS_PORT": str(FLEET_PORT),
            "PROMPTMILL_STATE_DIR": folder,
        }
        running.enter_context(_started([sys.executable, "-m", "promptmill.cli", "monitor"], environment))
        if shutil.which("prometheus"):
            running.enter_context(_started(_prometheus(Path(folder)), dict(os.environ)))
        running.enter_context(_looking(f"http://127.0.0.1:{MONITOR_PORT}/fleet/data"))
        yield


def _prometheus(folder: Path) -> list[str]:
    targets = [{"targets": [f"127.0.0.1:{port}"]} for port in (WORKER_PORT, FLEET_PORT)]
    jobs = {"scrape_configs": [{"job_name": "promptmill", "static_configs": targets}]}
    (folder / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": f"{SCRAPE_S}s"}, **jobs}))
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
    ]


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    silent = subprocess.DEVNULL
    process = watchdog.start_watched(command, 10.0, env=environment, stdout=silent, stderr=silent)
    try:
        yield
    finally:
        watchdog.ask_to_stop(process)


@contextmanager
def _looking(url: str) -> Iterator[None]:
    """Asks for the fleet page's data every two seconds; the block begins once the monitor answers."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(2.0):
            urllib.request.urlopen(url, timeout=10).read()

    while True:
        try:
            urllib.request.urlopen(url, timeout=10).read()
            break
        except OSError:
            time.sleep(0.2)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
