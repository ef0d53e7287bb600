"""The continuous engine for a loaded model, or the static one where that can't run."""

from __future__ import annotations

import logging

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.continuous_support import NotContinuousError, why_not_continuous
from promptmill_worker.engine import Engine
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
            return ContinuousEngine(checkpoint, settings)
        except NotContinuousError as error:
            reason = f"transformers refuses it ({' '.join(str(error.__cause__).split())[:200]})"
        # What was tried has changed it, and that one needs the cache of the running batch.
        checkpoint.model.set_attn_implementation(attention)
    log.warning("model %r runs in static batches, not in a continuous one: %s", settings.model, reason)
    return StaticEngine(checkpoint, settings, reason)
