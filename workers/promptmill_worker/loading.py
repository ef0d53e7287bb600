"""From settings to an engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from promptmill.errors import ModelLoadError
from promptmill_worker.echo import EchoEngine
from promptmill_worker.engine import Engine
from promptmill_worker.settings import EngineSettings

__all__ = ["LoadEngine", "load_engine"]

#: Makes an engine of settings, as ``load_engine`` does.
LoadEngine = Callable[[EngineSettings], Engine]


def load_engine(settings: EngineSettings) -> Engine:
    """The engine that the settings name, ready to generate.

    The echo engine needs no torch, and none is imported for it.

    Raises:
        ModelLoadError: the model can't be loaded; the message says why and what to check.
        InvalidSettingError: a setting doesn't fit the model.
    """
    if settings.engine == "echo":
        return EchoEngine(settings)
    for library in ("torch", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise ModelLoadError(
                f"model {settings.model!r} can't be loaded: {library} is not installed: "
                "pip install 'promptmill[worker]'"
            )
    from promptmill_worker.checkpoint import load_checkpoint  # these import torch, which takes seconds
    from promptmill_worker.fallback import engine_for

    return engine_for(load_checkpoint(settings), settings)
