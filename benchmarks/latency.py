"""First-token and per-token latency of the engine alone, by how many requests are in flight."""

from __future__ import annotations

import statistics
from typing import Any

from workload import requests

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.settings import EngineSettings

__all__ = ["measure"]

IN_FLIGHT = (1, 8, 32)
TOKENS = 16


def measure(checkpoint: Checkpoint, settings: EngineSettings, rounds: int) -> dict[str, Any]:
    """For each number in flight, all submitted at once: medians in milliseconds, and the last one's first token."""
    found: dict[int, list[tuple[float, float]]] = {in_flight: [] for in_flight in IN_FLIGHT}
    with ContinuousEngine(checkpoint, settings.model_copy(update={"max_batch": max(IN_FLIGHT)})) as engine:
        for turn in range(rounds):
            for in_flight, latencies in found.items():
                futures = [engine.submit(r) for r in requests(in_flight, f"{in_flight} {turn}", TOKENS)]
                for timings in [future.result().timings for future in futures]:
                    first_s = timings.time_to_first_token_s or 0.0
                    latencies.append((first_s, ((timings.generation_s or 0.0) - first_s) / (TOKENS - 1)))
    return {
        str(in_flight): {
            "first token, ms": _median_ms([first_s for first_s, _ in latencies]),
            "last one's first token, ms": round(1000 * max(first_s for first_s, _ in latencies)),
            "each further token, ms": _median_ms([token_s for _, token_s in latencies]),
        }
        for in_flight, latencies in found.items()
    }


def _median_ms(values_s: list[float]) -> int:
    return round(1000 * statistics.median(values_s))
