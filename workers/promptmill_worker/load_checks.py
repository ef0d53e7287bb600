"""What is refused although transformers would go on, or would say it less plainly."""

from __future__ import annotations

import importlib.util
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from promptmill_worker.load_errors import NO_FOLDER, OTHER_KIND, refusal, with_near_names
from promptmill_worker.settings import EngineSettings

__all__ = ["refuse_incomplete", "refuse_missing_library", "refuse_other_kinds", "refuse_wrong_path"]


def refuse_missing_library(settings: EngineSettings) -> None:
    """Refuses quantisation where bitsandbytes is not installed."""
    if settings.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise refusal(
            settings,
            f"quantization={settings.quantization} needs bitsandbytes, which is not installed: "
            "pip install 'promptmill[worker]', or unset quantization",
        )


def refuse_wrong_path(settings: EngineSettings) -> None:
    """Refuses what looks like a path, and is not there: the hub would be asked for it."""
    if settings.model.startswith(("/", "./", "../", "~")) or settings.model.lower().endswith(".gguf"):
        raise refusal(settings, with_near_names(NO_FOLDER, settings))


def refuse_other_kinds(config: Any, settings: EngineSettings) -> None:
    """Refuses what generates no text, before the tokenizer is loaded: an image model has none."""
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise refusal(settings, OTHER_KIND)


def refuse_incomplete(model: Any, missing: set[str], settings: EngineSettings) -> None:
    """Refuses a model with missing weights: transformers takes random numbers instead, and it would write nonsense.

    Args:
        model: As it was loaded.
        missing: Names of the weights that no file held.
        settings: Name the model.
    """
    if model.device.type == "meta":
        raise refusal(
            settings,
            "not even its first part fits the device that computes, all of it would lie on disk: "
            "raise max_memory, or take a smaller model",
        )
    if missing:
        raise refusal(
            settings,
            f"{len(missing)} of its {len(model.state_dict())} weights are in no file ({min(missing)}, …): "
            "fetch it again, or take a model that was trained to generate text",
        )
