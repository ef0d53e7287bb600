"""Loads a model and its tokenizer from a hub id, a folder or a GGUF file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from promptmill.errors import ModelLoadError
from promptmill_worker.fit import refuse_what_does_not_fit
from promptmill_worker.gguf import converted_copy, gguf_file
from promptmill_worker.hardware import computes_bfloat16, cpu_threads, pick_device, pick_dtype
from promptmill_worker.hub import hub_is_asked
from promptmill_worker.load_checks import (
    refuse_incomplete,
    refuse_missing_library,
    refuse_other_kinds,
    refuse_wrong_path,
)
from promptmill_worker.load_errors import explained, refusal
from promptmill_worker.placement import placement_options
from promptmill_worker.settings import EngineSettings

__all__ = ["Checkpoint", "load_checkpoint", "quantization_config"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model."""

    model: Any
    tokenizer: Any
    #: "bfloat16", "float32", "bnb-4bit", …
    precision: str
    #: Tokens that end a text of this model.
    end_ids: frozenset[int]


def load_checkpoint(settings: EngineSettings) -> Checkpoint:
    """The model that the settings name, on its device, ready to generate.

    Raises:
        ModelLoadError: it can't be loaded; the message says why and what to check.
    """
    quiet_libraries()
    refuse_missing_library(settings)
    torch.set_num_threads(cpu_threads(settings))
    device = pick_device(settings)
    try:
        place = _place(settings)
        config = AutoConfig.from_pretrained(**place)
        refuse_other_kinds(config, settings)
        tokenizer = _tokenizer(place)
        model = _model(place, config, settings, device)
    except ModelLoadError:
        raise
    except Exception as error:
        raise explained(error, settings) from error
    precision = settings.quantization or str(model.dtype).removeprefix("torch.")
    return Checkpoint(model, tokenizer, precision, _end_ids(model, tokenizer))


def quiet_libraries() -> None:
    """Silences progress bars and warnings, one of which shows tokens of a prompt."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # outside the tree of transformers
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()


def _place(settings: EngineSettings) -> dict[str, Any]:
    # What from_pretrained has to know to find the files.
    path = Path(settings.model).expanduser()
    common: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if path.exists():
        file = gguf_file(path)
        path = converted_copy(file, settings.cache_dir) if file else path
        if not (path / "config.json").is_file():
            raise refusal(
                settings,
                "it is there, but is neither a GGUF file nor a folder with a config.json: "
                "name the file or the folder itself",
            )
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True, **common}
    refuse_wrong_path(settings)
    return {
        "pretrained_model_name_or_path": settings.model,
        "revision": settings.revision or "main",
        "local_files_only": not hub_is_asked(settings),
        **common,
    }


def _tokenizer(place: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(**place, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _model(place: dict[str, Any], config: Any, settings: EngineSettings, device: torch.device) -> Any:
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    dtype = pick_dtype(settings, device, stored)
    refuse_what_does_not_fit(config, settings, device, dtype)
    quantised: dict[str, Any] = {}
    if settings.quantization is not None:
        quantised["quantization_config"] = quantization_config(settings.quantization, device, dtype)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        **place,
        config=config,
        dtype=dtype,
        **placement_options(settings, device),
        **quantised,
        output_loading_info=True,
    )
    refuse_incomplete(model, loaded["missing_keys"], settings)
    return model.eval()


def quantization_config(kind: str, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes quantises the linear layers.

    Args:
        kind: As in the settings.
        device: Where the model computes.
        dtype: What the rest of the model is loaded in.
    """
    if kind == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    fast = dtype if dtype != torch.float32 or not computes_bfloat16(device) else torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=fast,
    )


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    own = model.generation_config.eos_token_id
    own = tokenizer.eos_token_id if own is None else own
    if own is None:
        return frozenset()
    return frozenset([own] if isinstance(own, int) else own)
