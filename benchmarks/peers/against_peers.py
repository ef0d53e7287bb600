"""Tokens a second of promptmill and of what a user would pick instead, on one machine in one run.

python benchmarks/peers/against_peers.py --workload mixed
python benchmarks/peers/against_peers.py --workload trace --ways queue,transformers-serve --requests-per-s 0.7
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent / "servers")]  # what others use, too

import celery_ways
import http_ways
import in_process
import ours
from contest import Job, Run, Setting, Submit, Way, replay
from never_ending import never_ending_copy
from processes import PeerError
from report import markdown, report
from workloads import WORKLOADS, trace

from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill_worker.gguf import converted_copy
from promptmill_worker.settings import EngineSettings

#: Name → way. The first is what the others are set in relation to.
WAYS: dict[str, Way] = {
    "in-process": ours.in_process,
    "queue": ours.queue,
    "stock": in_process.stock,
    "static": in_process.static,
    "naive": celery_ways.naive,
    "celery-batches": celery_ways.celery_batches,
    "litserve": http_ways.litserve,
    "transformers-serve": http_ways.transformers_serve,
    "vllm": http_ways.vllm,
}

#: Takes one prompt at a time, however many there are: one in so many tells its speed.
SHARES = {"naive": 4}


def main() -> None:
    """Runs the comparison and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", default="mixed", choices=[*WORKLOADS, "trace"])
    parser.add_argument("--ways", default=",".join(WAYS), help="names with commas between them: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32, help="prompts that are computed at once")
    parser.add_argument("--requests-per-s", type=float, default=1.0, help="of the trace")
    parser.add_argument("--requests", type=int, default=100, help="of the trace")
    parser.add_argument("--output", type=Path, help="also write the figures there")
    arguments = parser.parse_args()

    replayed = partial(trace, count=arguments.requests, requests_per_s=arguments.requests_per_s)
    jobs = WORKLOADS.get(arguments.workload, replayed)
    with ExitStack() as stack:
        setting = _setting(stack, arguments)
        runs = compare(started(stack, arguments.ways.split(","), setting), jobs, arguments.rounds)
    figures = report(
        runs, SHARES, {name: value for name, value in vars(arguments).items() if name not in ("ways", "output")}
    )
    print(json.dumps(figures, indent=2))
    print(markdown(figures), file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def started(stack: ExitStack, names: Sequence[str], setting: Setting) -> dict[str, Submit]:
    """How to submit to each way that can be installed here and starts; it is said which others there are."""
    submits = {}
    for name in names:
        try:
            submits[name] = stack.enter_context(WAYS[name](setting))
        except (subprocess.CalledProcessError, PeerError) as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return submits


def compare(submits: dict[str, Submit], jobs: Callable[[int], list[Job]], rounds: int) -> dict[str, list[Run]]:
    """Runs of each way, by turns.

    Args:
        submits: Name of a way → how to submit to it.
        jobs: Makes a round's.
        rounds: How many. One of a few prompts goes before.
    """
    runs: dict[str, list[Run]] = {name: [] for name in submits}
    for submit in submits.values():
        replay(submit, [Job(job.messages, 4) for job in jobs(0)[:4]])
    for turn in range(1, rounds + 1):
        for name, submit in submits.items():
            runs[name].append(replay(submit, jobs(turn)[:: SHARES.get(name, 1)]))
            print(f"round {turn}, {name}: {runs[name][-1].tokens_per_s:.1f} tokens/s", file=sys.stderr)
    return runs


def _setting(stack: ExitStack, arguments: argparse.Namespace) -> Setting:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    demo = demo_model_path()
    return Setting(
        model=never_ending_copy(converted_copy(demo, EngineSettings.read(model=str(demo)).cache_dir), folder / "model"),
        dtype=arguments.dtype,
        threads=arguments.threads,
        slots=arguments.slots,
        broker_url=stack.enter_context(EmbeddedBroker(appendfsync="everysec")).url,
    )


if __name__ == "__main__":
    main()
