"""Dramatiq: one process with threads, the Redis backend for results; a group."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from peer_round import BROKER, PROMPT, SLOTS, main

broker = RedisBroker(url=BROKER)
broker.add_middleware(Results(backend=RedisBackend(url=BROKER)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)  # type: ignore[untyped-decorator]
def echo(prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """Its own command line: one process."""
    command = [sys.executable, "-m", "dramatiq", "dramatiq_peer", "--processes", "1", "--threads", str(SLOTS)]
    command += ["--skip-logging"]
    os.execv(sys.executable, command)


def run(tasks: int, submitted: Callable[[], None]) -> list[str]:
    """There is no bulk submission; a group asks for one result after the other, each time waiting in the broker."""
    sent = dramatiq.group(echo.message(PROMPT) for _ in range(tasks)).run()
    submitted()
    return list(sent.get_results(block=True, timeout=600_000))


if __name__ == "__main__":
    main(worker, run)
