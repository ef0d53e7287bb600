"""Loads a model and its tokenizer from a hub id, a folder or a GGUF file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from promptmill.errors import ModelLoadError
from promptmill_worker.gguf import converted_copy, gguf_file
from promptmill_worker.hardware import computes_bfloat16, cpu_threads, pick_device, pick_dtype
from promptmill_worker.load_errors import explained
from promptmill_worker.settings import EngineSettings

__all__ = ["Checkpoint", "load_checkpoint"]

#: How long the hub may take to say whether a model is there, in seconds.
HUB_TIMEOUT_S = 5.0


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
    torch.set_num_threads(cpu_threads(settings))
    device = pick_device(settings)
    try:
        place = _place(settings)
        config = AutoConfig.from_pretrained(**place)
        _refuse_other_kinds(config)
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
            raise ModelLoadError(
                f"model {settings.model!r} can't be loaded: it is there, but is neither a GGUF file "
                "nor a folder with a config.json: name the file or the folder itself"
            )
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True, **common}
    if settings.model.startswith(("/", "./", "../", "~")) or settings.model.lower().endswith(".gguf"):
        raise ModelLoadError(
            f"model {settings.model!r} can't be loaded: there is no such folder or file: check the path"
        )
    return {
        "pretrained_model_name_or_path": settings.model,
        "revision": settings.revision or "main",
        "local_files_only": settings.local_files_only or not _hub_knows(settings),
        **common,
    }


def _hub_knows(settings: EngineSettings) -> bool:
    # Asked once and briefly: from_pretrained would ask again and again, for minutes where there is no network.
    # Away, the hub is no reason to fail as long as the model is in the local cache.
    try:
        huggingface_hub.HfApi().model_info(settings.model, revision=settings.revision, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
    except ValueError:  # the name itself is malformed
        raise
    except Exception as error:
        if _cached(settings):
            return False
        raise ModelLoadError(
            f"model {settings.model!r} can't be loaded: huggingface.co does not answer and the model is not in the "
            f"local cache: check the network and the spelling, or name a folder ({type(error).__name__})"
        ) from error
    else:
        return True
    return False


def _cached(settings: EngineSettings) -> bool:
    found = huggingface_hub.try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
    return isinstance(found, str)


def _refuse_other_kinds(config: Any) -> None:
    # Before the tokenizer is loaded: an image model has none, and that would be the error.
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise ValueError(f"Unrecognized configuration class {type(config).__name__}")


def _tokenizer(place: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(**place, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _model(place: dict[str, Any], config: Any, settings: EngineSettings, device: torch.device) -> Any:
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    dtype = pick_dtype(settings, device, stored)
    quantised: dict[str, Any] = {}
    if settings.quantization is not None:
        quantised["quantization_config"] = _quantization(settings.quantization, device, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        **place, config=config, dtype=dtype, device_map={"": device}, **quantised
    )
    return model.eval()


def _quantization(kind: str, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
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
