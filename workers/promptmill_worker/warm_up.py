"""An engine's first steps, before it takes tasks: what is made at the first use is made, and the speed is measured.

A full batch also shows at the start, not in the midst of the work, whether the memory suffices for it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future

from promptmill.errors import InvalidRequestError, ModelLoadError, PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker.engine import Engine, EngineInfo

__all__ = ["warmed_up"]

#: Steps before counting begins: the prompts are read in these.
FIRST_STEPS = 2

#: The most tokens of one text meanwhile.
LONGEST_TOKENS = 1_024

#: For how long an engine is given to make a step, in seconds.
PATIENCE_S = 30.0

#: How often the engine's steps are looked at, in seconds.
LOOK_EVERY_S = 0.001


def warmed_up(engine: Engine, measure_s: float) -> EngineInfo:
    """Has the engine generate a little; returns what it says of itself, with the speed if it was measured.

    Args:
        engine: Idle, and not yet told to anyone.
        measure_s: How long to measure alone, and how long in a full batch, in seconds; 0 measures nothing.

    Raises:
        ModelLoadError: it is loaded, but can't generate.
    """
    try:
        engine.submit(_request(2)).result()
    except InvalidRequestError:  # a tokenizer that knows no such letter
        return engine.info
    except PromptmillError as error:
        raise ModelLoadError(f"model {engine.info.model!r} is loaded, but can't generate: {error}") from error
    if measure_s == 0 or engine.info.engine == "echo":
        return engine.info
    alone = _tokens_per_s(engine, 1, measure_s)
    full = _tokens_per_s(engine, engine.info.max_batch, measure_s)
    return engine.info.model_copy(update={"tokens_per_s_alone": alone, "tokens_per_s_full": full})


def _request(max_tokens: int) -> GenerationRequest:
    return GenerationRequest.of("a", max_tokens=max_tokens, temperature=0, ignore_eos=True)


def _tokens_per_s(engine: Engine, requests: int, measure_s: float) -> float:
    """Tokens a second of so many requests together; 0 if it makes no steps within a reasonable time."""
    futures = [engine.submit(_request(LONGEST_TOKENS)) for _ in range(requests)]
    steps = _Steps(engine, futures)
    try:
        steps.wait_for(engine.steps + FIRST_STEPS)
        first, began_at = steps.last, steps.last_at
        steps.wait_for(first + 1)
        while steps.last_at < began_at + measure_s and steps.wait_for(steps.last + 1):
            pass
        took_s = steps.last_at - began_at
        # Fewer run if that many turned out not to fit the memory.
        return (steps.last - first) * min(requests, engine.info.max_batch) / took_s if took_s else 0.0
    finally:
        for future in futures:
            future.cancel()
        steps.wait_for_end()


class _Steps:
    """Watches an engine's steps while some requests run.

    Args:
        engine: What to watch.
        futures: The requests; when one of them ends, there is nothing more to see.
    """

    def __init__(self, engine: Engine, futures: list[Future[GenerationResult]]) -> None:
        self._engine = engine
        self._futures = futures
        #: The last step that was seen, and when that was.
        self.last, self.last_at = engine.steps, time.perf_counter()

    def wait_for(self, step: int) -> bool:
        """Waits until the engine has made ``step``; returns False if it does not come, or not with all requests."""
        patient_until = time.perf_counter() + PATIENCE_S
        while not any(future.done() for future in self._futures):
            now, seen = time.perf_counter(), self._engine.steps
            if seen != self.last:
                self.last, self.last_at = seen, now
            if seen >= step or now > patient_until:
                return seen >= step
            time.sleep(LOOK_EVERY_S)
        return False

    def wait_for_end(self) -> None:
        """Waits until the engine has let go of the requests."""
        patient_until = time.perf_counter() + PATIENCE_S
        while self._engine.running and time.perf_counter() < patient_until:
            time.sleep(LOOK_EVERY_S)
