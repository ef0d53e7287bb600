"""The engine on the demo model: precisions, latency, prefix sharing, sampling, attention; ratios, in one run.

python benchmarks/engine.py --threads 1
python benchmarks/engine.py --section sampler --section attention
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import attention_speed
import latency
import precisions
import prefix_sharing
import sampler_cost
import workload

from promptmill.demo_model import demo_model_path
from promptmill_worker.checkpoint import load_checkpoint
from promptmill_worker.settings import EngineSettings


def main() -> None:
    """Runs the sections that are asked for and prints their figures as JSON."""
    names = ("queue", "latency", "prefix", "sampler", "attention")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--section", action="append", choices=names, help="may be given several times; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of queue, latency and prefix")
    arguments = parser.parse_args()

    settings = EngineSettings.read(model=str(demo_model_path()), dtype="float32", threads=arguments.threads)
    checkpoint = load_checkpoint(settings)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "queue": lambda: precisions.measure(checkpoint, settings, arguments.rounds),
        "latency": lambda: latency.measure(checkpoint, settings, arguments.rounds),
        "prefix": lambda: prefix_sharing.measure(checkpoint, settings, arguments.rounds),
        "sampler": lambda: sampler_cost.measure(checkpoint, settings),
        "attention": lambda: attention_speed.measure(checkpoint, settings),
    }
    found: dict[str, Any] = {}
    for name in arguments.section or names:
        found[name] = sections[name]()
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr)
    print(json.dumps({**found, "threads": arguments.threads, **workload.machine()}, indent=2))


if __name__ == "__main__":
    main()
