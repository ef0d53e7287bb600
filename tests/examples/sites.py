"""Servers of the examples, as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from workers import WorkerProcess, a_process, wait_until

__all__ = ["EXAMPLES", "a_site", "settled"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def a_site(command: list[str], port: int, log: Path, **environment: str) -> Iterator[httpx2.Client]:
    """Runs a web server on ``port`` until the block is left; yields a client of it, once it answers."""
    url = f"http://127.0.0.1:{port}"
    with a_process(command, log, **environment) as process, httpx2.Client(base_url=url, timeout=20) as site:
        wait_until(lambda: _answers(site, process), "the site answers", timeout_s=60)
        yield site


def settled(site: httpx2.Client, path: str, timeout_s: float = 20.0) -> httpx2.Response:
    """What ``path`` answers once it tells of the task's end."""
    responses: list[httpx2.Response] = []

    def is_settled() -> bool:
        responses.append(site.get(path))
        return responses[-1].json().get("status", "").lower() not in ("queued", "running", "pending")

    wait_until(is_settled, f"{path} is settled", timeout_s)
    return responses[-1]


def _answers(site: httpx2.Client, process: WorkerProcess) -> bool:
    try:
        return site.get("/").status_code == 404
    except httpx2.TransportError:
        assert process.is_alive, process.log
        return False
