"""The continuous engine for a loaded model, or the static one where that can't run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from promptmill.protocol import GenerationRequest
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.continuous_support import NotContinuousError, why_not_continuous
from promptmill_worker.engine import Engine, EngineDiedError
from promptmill_worker.settings import EngineSettings
from promptmill_worker.static import StaticEngine

__all__ = ["engine_for"]

log = logging.getLogger(__name__)


def engine_for(checkpoint: Checkpoint, settings: EngineSettings) -> Engine:
    """An engine that runs ``checkpoint``, ready to generate.

    Raises:
        ModelLoadError: the cache doesn't fit the memory, or the model can't generate.
        InvalidSettingError: ``max_model_len`` is beyond the model's context.
    """
    reason = why_not_continuous(checkpoint.model)
    if reason is None:
        attention = checkpoint.model.config._attn_implementation
        try:
            return _tried(ContinuousEngine(checkpoint, settings))
        except NotContinuousError as error:
            cause = error.__cause__
            reason = f"transformers refuses it ({type(cause).__name__}: {' '.join(str(cause).split())[:200]})"
        # What was tried has changed it, and that one needs the cache of the running batch.
        checkpoint.model.set_attn_implementation(attention)
    log.warning("model %r runs in static batches, not in a continuous one: %s", settings.model, reason)
    return StaticEngine(checkpoint, settings, reason)


def _tried(engine: ContinuousEngine) -> ContinuousEngine:
    """``engine``, once it has generated: without CUDA graphs to capture, some models first meet the cache here.

    Raises:
        NotContinuousError: its loop has ended over the first request.
    """
    request = GenerationRequest.of("a", max_tokens=2, temperature=0, ignore_eos=True)
    with _no_traceback():
        error = engine.submit(request).exception()
    if isinstance(error, EngineDiedError):
        engine.close()
        raise NotContinuousError(str(error)) from engine.failure
    return engine


@contextmanager
def _no_traceback() -> Iterator[None]:
    """Keeps transformers from writing the traceback of a loop that we go on without."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
