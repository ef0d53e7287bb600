"""Ours, through the same harness: ``Client.map``, or ``Client.submit`` prompt by prompt, and the echo engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

from peer_round import BROKER, PROMPT, SLOTS, main

from promptmill import Client

URL = BROKER.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host=")

MODEL = "echo"

#: What the worker takes from the queue at once, while it runs ten: the others, too, hold more than they run.
IN_FLIGHT = 256


def worker() -> None:
    """Our command line; the launcher watches it as it does everywhere."""
    options = ["--engine", "echo", "--model", MODEL, "--max-batch", str(SLOTS), "--max-in-flight", str(IN_FLIGHT)]
    os.environ["PROMPTMILL_BROKER_URL"] = URL
    os.execv(sys.executable, [sys.executable, "-m", "promptmill.cli", "worker", "--log-level", "error", *options])


def run_of(client: Client, one_by_one: bool) -> Callable[[int, Callable[[], None]], list[str]]:
    """Either way of submitting; a task for each prompt, or chunks as large as ``map`` chooses them."""

    def submit(tasks: int, submitted: Callable[[], None]) -> list[str]:
        handles = [client.submit(PROMPT, max_tokens=8) for _ in range(tasks)]
        submitted()
        return [handle.result(timeout_s=600).text for handle in handles]

    def map_(tasks: int, submitted: Callable[[], None]) -> list[str]:
        def prompts() -> Iterator[str]:
            yield from (PROMPT for _ in range(tasks))
            submitted()

        # All at once, as the others have them.
        return [result.text for result in client.map(prompts(), max_tokens=8, max_in_flight=max(IN_FLIGHT, tasks))]

    return submit if one_by_one else map_


if __name__ == "__main__":
    way = sys.argv.pop(1)
    with Client(URL, model=MODEL) as client:
        main(worker, run_of(client, one_by_one=way == "one-by-one"))
