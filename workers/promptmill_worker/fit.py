"""Whether a model's weights fit the memory, found out before minutes go into fetching and loading them.

The model is built without memory ("meta" device) from its config alone, and its parameters are counted.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from promptmill.errors import ModelLoadError
from promptmill_worker.free_memory import free_bytes
from promptmill_worker.settings import EngineSettings
from promptmill_worker.sizes import shown

__all__ = ["refuse_what_does_not_fit", "weights_bytes", "without_memory"]

log = logging.getLogger(__name__)

#: Bytes of a quantised weight. NF4: half a byte, and for each 64 weights one byte of scale, itself scaled by a
#: float32 for 256 of them.
QUANTISED_BYTES = {"bnb-8bit": 1.0, "bnb-4bit": 0.5 + (1 + 4 / 256) / 64}


def refuse_what_does_not_fit(config: Any, settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses a model whose weights are larger than the device's free memory.

    One that is stored quantised is let pass, and so is one that can't be built without memory.

    Raises:
        ModelLoadError: with the needed and the free bytes, and the settings that would make it fit.
    """
    free = free_bytes(device)
    if free is None or settings.device == "balanced" or getattr(config, "quantization_config", None) is not None:
        return
    model = without_memory(config, settings)
    if model is None:
        return
    needed = weights_bytes(model, dtype, settings.quantization)
    if needed <= free:
        return
    precision = settings.quantization or str(dtype).removeprefix("torch.")
    raise ModelLoadError(
        f"model {settings.model!r} does not fit {device}: its weights need {shown(needed)} in {precision}, "
        f"{shown(free)} are free: set {_ways_out(model, settings, dtype, free)}, or take a smaller model"
    )


def without_memory(config: Any, settings: EngineSettings) -> torch.nn.Module | None:
    """The model as its config describes it, its parameters without content; None if it can't be built so."""
    try:
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
    except Exception as error:  # its own code may do anything; loading it will tell
        log.debug("the size of %s can't be told before it is loaded (%s)", settings.model, type(error).__name__)
        return None
    return model


def weights_bytes(model: Any, dtype: torch.dtype, quantization: str | None) -> int:
    """Size of a model's weights once they are loaded, in bytes.

    Args:
        model: With or without memory; weights that are tied to others count once.
        dtype: What is not quantised is loaded in.
        quantization: As in the settings: bitsandbytes quantises the linear layers, but for the last.
    """
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    if quantization is None:
        return parameters * dtype.itemsize
    last = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not last]
    quantised: int = sum(module.weight.numel() for module in linear)
    return int(quantised * QUANTISED_BYTES[quantization]) + (parameters - quantised) * dtype.itemsize


def _ways_out(model: Any, settings: EngineSettings, dtype: torch.dtype, free: int) -> str:
    half, asked = torch.bfloat16, settings.quantization
    kinds = ["bnb-8bit", "bnb-4bit"] if asked is None else ["bnb-4bit"] if asked == "bnb-8bit" else []
    ways = {f"quantization={kind}": weights_bytes(model, half, kind) for kind in kinds}
    if asked is None and dtype.itemsize > half.itemsize:
        ways = {"dtype=bfloat16": weights_bytes(model, half, None), **ways}
    fitting = [f"{way} (about {shown(size)})" for way, size in ways.items() if size <= free]
    fitting.append("device=balanced (over all GPUs, memory and disk, not quantised: slow)")
    return " or ".join(fitting)
