"""Why a model can't be loaded, in a sentence or two, from what transformers and the hub raise."""

from __future__ import annotations

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from promptmill.errors import ModelLoadError
from promptmill_worker.settings import EngineSettings

__all__ = ["explained"]


def explained(error: BaseException, settings: EngineSettings) -> ModelLoadError:
    """``error`` as a ModelLoadError: which model, why, and what to check."""
    return ModelLoadError(f"model {settings.model!r} can't be loaded: {_why(error, settings)}")


def _why(error: BaseException, settings: EngineSettings) -> str:
    by_type = _by_type(error, settings)
    if by_type is not None:
        return by_type
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            "it comes with its own code, which is not run unless you trust it: "
            "read that code, then set trust_remote_code"
        )
    if "Unrecognized configuration class" in text or "Unrecognized model" in text:
        return "it is not a text generation model that transformers knows: check the name and its model card"
    if "is not a valid git identifier" in text:
        return f"it has no revision {settings.revision!r}: check the branch, tag or commit"
    if settings.local_files_only and "cached files" in text:
        return "it is not in the local cache: unset local_files_only once to fetch it, or name a folder"
    if "gated repo" in text:
        return _GATED
    if "PyTorch was not compiled" in text or "No space left" in text:
        return text[:300]
    return f"{type(error).__name__}: {text[:300]}"


_GATED = "it is gated: accept its licence on huggingface.co, then set HF_TOKEN to a token of an account that has access"


def _by_type(error: BaseException, settings: EngineSettings) -> str | None:
    match error:
        case GatedRepoError():
            return _GATED
        case RevisionNotFoundError():
            return f"it has no revision {settings.revision!r}: check the branch, tag or commit"
        case RepositoryNotFoundError():
            return (
                "huggingface.co has no such model, or it is private: "
                "check the spelling, or set HF_TOKEN to a token that may read it"
            )
        case HFValidationError():
            return "there is no such folder or file, and it is no name on the hub (owner/name): check the spelling"
        case torch.OutOfMemoryError() | MemoryError():
            return "its weights do not fit the memory: try quantization=bnb-4bit, a smaller dtype or model"
        case ImportError():
            text = " ".join(str(error).split())
            return f"a library is missing ({text[:200]}): pip install 'promptmill[worker]' and what the card names"
        case _:
            return None
