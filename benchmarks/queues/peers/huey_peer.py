"""Huey: one process with threads, without a scheduler; a client that waits in the broker instead of asking again."""

from __future__ import annotations

from collections.abc import Callable

from huey import RedisHuey
from peer_round import BROKER, PROMPT, SLOTS, main

huey = RedisHuey("echo", url=BROKER, notify_result=True)


@huey.task()  # type: ignore[untyped-decorator]
def echo(prompt: str) -> str:
    """The prompt."""
    return prompt


def worker() -> None:
    """One process."""
    huey.create_consumer(workers=SLOTS, worker_type="thread", periodic=False).run()


def run(tasks: int, submitted: Callable[[], None]) -> list[str]:
    """There is no bulk submission."""
    results = [echo(PROMPT) for _ in range(tasks)]
    submitted()
    return [result.get(blocking=True, timeout=600) for result in results]


if __name__ == "__main__":
    main(worker, run)
