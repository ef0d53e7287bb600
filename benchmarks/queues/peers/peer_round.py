"""What each peer's client does, in the peer's own environment: the standard library only.

``python rq_peer.py submit 20000`` prints one JSON object: how long it took until all tasks were submitted, and until
all answers were there, in seconds. ``python rq_peer.py alone 300`` prints the latencies of tasks that are sent one at a
time to a worker that does nothing else. ``python rq_peer.py worker`` is the worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence

__all__ = ["BROKER", "PROMPT", "SLOTS", "Run", "main"]

#: URL of the broker, as redis-py spells it.
BROKER = os.environ["QUEUE_BROKER"]

PROMPT = "x" * 168

#: Tasks that a worker may run at once.
SLOTS = 10

#: Tasks before those that count.
WARM_UP = 200

#: Submits so many tasks, calls what it is given once all are submitted, and returns the answers.
Run = Callable[[int, Callable[[], None]], Sequence[str]]


def main(worker: Callable[[], object], run: Run) -> None:
    """Does what the command line says."""
    verb, *count = sys.argv[1:]
    if verb == "worker":
        worker()
        return
    _round(run, WARM_UP)
    tasks = int(count[0])
    if verb == "submit":
        print(json.dumps(_round(run, tasks)))
    else:
        print(json.dumps({"latencies_s": [_round(run, 1)["answered_s"] for _ in range(tasks)]}))


def _round(run: Run, tasks: int) -> dict[str, float]:
    started = time.perf_counter()
    submitted = [started]
    answers = run(tasks, lambda: submitted.append(time.perf_counter()))
    answered = time.perf_counter()
    assert list(answers) == [PROMPT] * tasks
    return {"submitted_s": submitted[-1] - started, "answered_s": answered - started}
