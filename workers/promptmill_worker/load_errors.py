"""Why a model can't be loaded, in one sentence, from what transformers and the hub raise.

Each sentence says why and what to do; docs/models.md lists them all, with the test that shows each.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from promptmill.errors import ModelLoadError
from promptmill_worker.damaged import damaged_files
from promptmill_worker.hub import cached_folder, near_names
from promptmill_worker.settings import EngineSettings

__all__ = ["explained", "refusal", "with_near_names"]

NO_FOLDER = "there is no such folder or file: check the path"
NO_NAME = "there is no such folder or file, and it is no name on the hub (owner/name): check the spelling"
NOT_ON_HUB = (
    "the hub has no such model, or it is private: check the spelling, or set HF_TOKEN to a token that may read it"
)
NOT_IN_CACHE = (
    "it is not in the local cache: unset local_files_only (and HF_HUB_OFFLINE) once to fetch it, or name a folder"
)
LOGIN_REFUSED = "the hub does not accept your token: set HF_TOKEN to a valid one, or unset it for a public model"
GATED = "it is gated: accept its licence on huggingface.co, then set HF_TOKEN to a token of an account that has access"
NO_REVISION = "it has no such revision: check the branch, tag or commit"
OTHER_KIND = "it is not a text generation model that transformers knows: check the name and its model card"
OWN_CODE = (
    "it comes with its own code, which is not run unless you trust it: read that code, then set trust_remote_code"
)
NOT_JSON = "a file of it that should be JSON is not: fetch it again"
CUT_SHORT = "a file of its weights is damaged or cut short: fetch it again"
NO_WEIGHTS = "a file of its weights is missing: fetch it again; they must be safetensors or pytorch_model.bin"
NO_TOKENIZER = "it has no tokenizer that transformers can read: it needs a tokenizer.json"
OTHER_SHAPE = "its weights have other shapes than its config.json says: fetch it again, both from one revision"
NO_MEMORY = "its weights do not fit the memory: set quantization=bnb-4bit or device=balanced, or take a smaller model"
NOT_OFFLOADED = (
    "it does not fit the GPUs, and quantised weights can't lie in memory or on disk: "
    "unset quantization, or take a smaller model"
)
QUANTISED_ALREADY = "it is stored quantised already: unset quantization"
NO_LIBRARY = "a library is missing: install it"

#: What is said where the text of an error holds these words; the first that fits wins.
_BY_WORDS = {
    "trust_remote_code": OWN_CODE,
    "Unrecognized configuration class": OTHER_KIND,
    "Unrecognized model": OTHER_KIND,
    "does not recognize this architecture": OTHER_KIND,
    "is not a valid git identifier": NO_REVISION,
    "gated repo": GATED,
    "not a valid JSON file": NOT_JSON,
    "no file named": NO_WEIGHTS,
    "does not appear to have a file named": NO_WEIGHTS,
    "does not appear to have files named": NO_WEIGHTS,
    "backend tokenizer": NO_TOKENIZER,
    "ignore_mismatched_sizes": OTHER_SHAPE,
    "dispatched on the CPU or the disk": NOT_OFFLOADED,
    "model is quantized with": QUANTISED_ALREADY,
    "is not a valid model identifier": NOT_ON_HUB,
    "cached files": NOT_IN_CACHE,
}


def refusal(settings: EngineSettings, why: str) -> ModelLoadError:
    """A ModelLoadError for the model of ``settings``."""
    return ModelLoadError(f"model {settings.model!r} can't be loaded: {why}")


def explained(error: BaseException, settings: EngineSettings) -> ModelLoadError:
    """``error`` as a ModelLoadError: which model, why, and what to do."""
    why = _by_type(error) or _by_words(error) or f"{type(error).__name__}: {_line(error)}"
    if why == NO_REVISION:
        why = why.replace("such revision", f"revision {settings.revision!r}")
    if why in (NOT_JSON, CUT_SHORT):
        why = _with_files(why, settings)
    return refusal(settings, with_near_names(why, settings) if why in (NOT_ON_HUB, NOT_IN_CACHE, NO_NAME) else why)


def with_near_names(why: str, settings: EngineSettings) -> str:
    """``why``, and what is there under a name that is nearly the one that was asked for."""
    near = near_names(settings.model)
    return f"{why} (there is {' and '.join(near)})" if near else why


def _with_files(why: str, settings: EngineSettings) -> str:
    path = Path(settings.model).expanduser()
    folder = path if path.is_dir() else cached_folder(settings)
    return f"{why} ({', '.join(damaged_files(folder))})" if folder else why


def _by_words(error: BaseException) -> str | None:
    text = str(error)
    return next((why for words, why in _BY_WORDS.items() if words in text), None)


def _by_type(error: BaseException) -> str | None:
    match error:
        case GatedRepoError():
            return GATED
        case RevisionNotFoundError():
            return NO_REVISION
        case RepositoryNotFoundError():
            return NOT_ON_HUB
        case HfHubHTTPError(response=response) if response is not None and response.status_code in (401, 403):
            # Who has no token gets 401 for a name that does not exist.
            knows_us = response.status_code == 403 or "credentials" in response.headers.get("X-Error-Message", "")
            return LOGIN_REFUSED if knows_us else NOT_ON_HUB
        case HFValidationError():
            return NO_NAME
        case json.JSONDecodeError():
            return NOT_JSON
        case SafetensorError():
            return CUT_SHORT
        case FileNotFoundError() if error.filename is None and "safetensors" in str(error):
            return NO_WEIGHTS
        case torch.OutOfMemoryError() | MemoryError():
            return NO_MEMORY
        case ImportError():
            return f"{NO_LIBRARY} ({_line(error)})"
        case _:
            return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
