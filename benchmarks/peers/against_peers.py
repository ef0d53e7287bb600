"""Tokens a second of promptmill and of what a user would pick instead, on one machine in one run.

python benchmarks/peers/against_peers.py --workload mixed
python benchmarks/peers/against_peers.py --workload trace --ways queue,transformers-serve --load 0.7
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
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

#: Whose capacity ``--load`` is a share of.
LOADED = "transformers-serve"

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
    parser.add_argument(
        "--load", type=float, help=f"instead: as a share of what {LOADED} answers when all come at once"
    )
    parser.add_argument("--requests", type=int, default=100, help="of the trace")
    parser.add_argument("--output", type=Path, help="also write the figures there")
    arguments = parser.parse_args()

    if arguments.load and (arguments.workload != "trace" or LOADED not in arguments.ways.split(",")):
        parser.error(f"--load is of the trace, and needs {LOADED} among the ways")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: servers leave processes of theirs behind
    replayed = partial(trace, count=arguments.requests)
    with ExitStack() as stack:
        submits = started(stack, arguments.ways.split(","), _setting(stack, arguments))
        if arguments.load:
            if LOADED not in submits:
                parser.error(f"--load is a share of what {LOADED} answers, which does not start")
            arguments.requests_per_s = round(
                arguments.load * capacity(submits[LOADED], replayed(0, requests_per_s=1.0)), 3
            )
        jobs = WORKLOADS.get(arguments.workload, partial(replayed, requests_per_s=arguments.requests_per_s))
        runs = compare(submits, jobs, arguments.rounds)
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


def capacity(submit: Submit, jobs: Sequence[Job]) -> float:
    """How many jobs a second a way answers when all come at once."""
    _warm_up(submit, jobs)
    return len(jobs) / replay(submit, [replace(job, at_s=0.0) for job in jobs]).seconds


def compare(submits: dict[str, Submit], jobs: Callable[[int], list[Job]], rounds: int) -> dict[str, list[Run]]:
    """Runs of each way, by turns.

    Args:
        submits: Name of a way → how to submit to it.
        jobs: Makes a round's.
        rounds: How many. One of a few prompts goes before.
    """
    runs: dict[str, list[Run]] = {name: [] for name in submits}
    for submit in submits.values():
        _warm_up(submit, jobs(0))
    for turn in range(1, rounds + 1):
        for name, submit in submits.items():
            runs[name].append(replay(submit, jobs(turn)[:: SHARES.get(name, 1)]))
            print(f"round {turn}, {name}: {runs[name][-1].tokens_per_s:.1f} tokens/s", file=sys.stderr)
    return runs


def _warm_up(submit: Submit, jobs: Sequence[Job]) -> None:
    replay(submit, [Job(job.messages, 4) for job in jobs[:4]])


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
