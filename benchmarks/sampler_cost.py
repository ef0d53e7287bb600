"""What sampling costs a step: one batch of mixed requests, every other step of which takes all rows as greedy."""

from __future__ import annotations

from typing import Any

from alternation import Alternation
from workload import requests

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.settings import EngineSettings

__all__ = ["measure"]

IN_FLIGHT = 32

#: Steps of each way.
STEPS = 24

#: The sampling of a row by its number; the rows between are greedy.
MIX: tuple[dict[str, Any], ...] = (
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 50},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1},
)


def measure(checkpoint: Checkpoint, settings: EngineSettings) -> dict[str, Any]:
    """Median steps in milliseconds, and their ratio."""
    steps = Alternation(("greedy", "mixed"), lambda _, steps: steps >= STEPS)
    samplings = [MIX[number // 2 % len(MIX)] if number % 2 else {} for number in range(IN_FLIGHT)]
    # Some tokens too many: the steps while prompts are still read are not counted.
    work = [
        requests(number + 1, "s", 2 * STEPS + 20, seed=number, **sampling)[-1]
        for number, sampling in enumerate(samplings)
    ]
    with ContinuousEngine(checkpoint, settings.model_copy(update={"max_batch": IN_FLIGHT})) as engine:
        _alternate(engine, steps)
        futures = [engine.submit(request) for request in work]
        steps.wait(futures)
    return {
        **{f"{way}, ms": round(1000 * steps.median_s(way), 1) for way in steps.ways},
        "mixed / greedy": round(steps.ratio, 3),
        "steps of each": STEPS,
    }


def _alternate(engine: ContinuousEngine, steps: Alternation) -> None:
    """Has every other step's sampler see no rows, as if all were greedy."""
    sampler = engine._manager.logit_processor
    prepare = sampler.prepare_tensor_args
    full = False

    def prepared(requests_in_batch: list[Any], arg_storage: Any) -> Any:
        nonlocal full
        # A full batch that follows a full one has no prompt to read.
        was_full, full = full, sum(request.has_new_token for request in requests_in_batch) == IN_FLIGHT
        steps.begin_step(counts=full and was_full)
        return prepare(requests_in_batch if steps.way == "mixed" else [], arg_storage)

    sampler.prepare_tensor_args = prepared
