"""A worker without any option beside workers that are tuned by hand in one thing each, on one workload.

The workload is ``mixed`` of benchmarks/peers. What no option sets is compared in-process.

python benchmarks/defaults.py
python benchmarks/defaults.py --group threads --group dtype
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from machine import ratio, setting

sys.path.append(str(Path(__file__).parent / "peers"))

import workloads

from promptmill import Client
from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill.protocol import GenerationRequest
from promptmill_worker import Engine, batching
from promptmill_worker.cores import usable_cores

#: Answers requests and returns how many tokens it generated.
Run = Callable[[list[GenerationRequest]], int]

#: Starts what is measured, and stops it.
Start = Callable[[], AbstractContextManager[Run]]


@contextmanager
def worker(*options: str, chunk_size: int | None = None) -> Iterator[Run]:
    """A worker with ``options``, and a client that sends prompts in chunks of a size; None: as it chooses."""
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        LocalWorker(broker.url, ["--model", str(demo_model_path()), "--log-level", "error", *options]) as started,
        Client(broker.url) as client,
    ):
        started.wait_until_ready(client)
        yield lambda requests: sum(
            result.usage.completion_tokens
            for result in client.map_requests(requests, chunk_size=chunk_size, ordered=False)
        )


@contextmanager
def engine(**constants: int) -> Iterator[Run]:
    """An engine in this process that is loaded with other ``constants`` of ``promptmill_worker.batching``."""
    with patch.dict(vars(batching), constants):
        loaded = Engine.load(str(demo_model_path()))
    with loaded:
        yield lambda requests: sum(
            future.result().usage.completion_tokens for future in [loaded.submit(request) for request in requests]
        )


def _options(name: str, *values: object) -> dict[str, Start]:
    return {"default": worker, **{f"{name} {value}": partial(worker, name, str(value)) for value in values}}


def _constants(name: str, *values: int) -> dict[str, Start]:
    return {"default": engine, **{f"{name} {value}": partial(engine, **{name: value}) for value in values}}


#: Name → variants that take turns, the default beside each, as a machine's speed changes from hour to hour.
GROUPS: dict[str, dict[str, Start]] = {
    "threads": _options("--threads", *sorted({1, usable_cores()})),
    "dtype": _options("--dtype", "float32", "bfloat16"),
    "batch": _options("--max-batch", 16, 32, 128),
    "chunk": {"default": worker, **{f"chunk_size={size}": partial(worker, chunk_size=size) for size in (1, 8, 32)}},
    "step": _constants("MAX_BATCH_TOKENS", 128, 256, 1024),
    "cache": _constants("SENSIBLE_REQUEST_TOKENS", 512, 1024),
    "page": _constants("PAGE_SIZE_TOKENS", 8, 32, 64),
}


def main() -> None:
    """Runs the groups, one after the other, and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--group", action="append", choices=GROUPS, help="may be given several times; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    tuned = [name for name in os.environ if name.startswith("PROMPTMILL_") or name == "OMP_NUM_THREADS"]
    if tuned:
        parser.error(f"unset {', '.join(tuned)}: the defaults are to be measured")

    groups = {name: _speeds(GROUPS[name], arguments.rounds) for name in arguments.group or GROUPS}
    shares = {
        name: ratio(speeds["default"], max(speeds.values(), key=statistics.median)) for name, speeds in groups.items()
    }
    figures = {"tokens/s": groups, "default ÷ best": shares, **setting("celery", "torch", "transformers")}
    print(json.dumps(figures, indent=2))
    print(markdown(groups), file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def markdown(groups: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A row for each variant: median with the least and the most, and what the default beside it is to it."""
    lines = ["| group | setting | tokens/s | default ÷ it |", "|---|---|---|---|"]
    for group, speeds in groups.items():
        for name, of_variant in speeds.items():
            spread = f"{statistics.median(of_variant):.1f} ({min(of_variant):.1f} to {max(of_variant):.1f})"
            lines.append(f"| {group} | {name} | {spread} | {ratio(speeds['default'], of_variant):.2f} |")
    return "\n".join(lines)


def _speeds(variants: Mapping[str, Start], rounds: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    with ExitStack() as stack:
        runs = {name: stack.enter_context(start()) for name, start in variants.items()}
        for run in runs.values():
            run(_requests(0)[:4])
        for turn in range(1, rounds + 1):
            for name, run in runs.items():
                requests = _requests(turn)
                began_at = time.perf_counter()
                speeds[name].append(round(run(requests) / (time.perf_counter() - began_at), 1))
                print(f"round {turn}, {name}: {speeds[name][-1]} tokens/s", file=sys.stderr, flush=True)
    return speeds


def _requests(turn: int) -> list[GenerationRequest]:
    sampling: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    jobs = workloads.mixed(turn)
    return [GenerationRequest.of(messages=job.messages, max_tokens=job.max_tokens, **sampling) for job in jobs]


if __name__ == "__main__":
    main()
