"""Asking the hub whether a model is there: once and briefly.

``from_pretrained`` would ask again and again, for minutes where there is no network.
"""

from __future__ import annotations

import difflib
from http import HTTPStatus
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError

from promptmill.errors import ModelLoadError
from promptmill_worker.settings import EngineSettings

__all__ = ["cached_folder", "hub_is_asked", "near_names"]

#: How long the hub may take to say whether a model is there, in seconds.
HUB_TIMEOUT_S = 5.0


def hub_is_asked(settings: EngineSettings) -> bool:
    """Whether the model's files are to be looked for on the hub; else they are in the local cache.

    Away, the hub is no reason to fail as long as the model is in the cache.

    Raises:
        ModelLoadError: the hub does not answer, and the model is not in the cache.
        HfHubHTTPError: the hub has answered that it is not there for us.
        ValueError: the name is malformed.
    """
    if settings.local_files_only or constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().model_info(settings.model, revision=settings.revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:
        if not _is_away(error):
            raise
        if cached_folder(settings) is not None:
            return False
        raise ModelLoadError(
            f"model {settings.model!r} can't be loaded: {constants.ENDPOINT} does not answer and the model is not in "
            f"the local cache: check the network and the spelling, or name a folder ({_shown(error)})"
        ) from error
    return True


def _is_away(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return not isinstance(error, ValueError)  # of a malformed name


def cached_folder(settings: EngineSettings) -> Path | None:
    """The folder of the local cache that holds the model's files; None if they are not there."""
    found = huggingface_hub.try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
    return Path(found).parent if isinstance(found, str) else None


def near_names(model: str) -> list[str]:
    """Models of the local cache, or for a path what lies beside it, whose names are nearly ``model``."""
    path = Path(model).expanduser()
    if model.startswith(("/", ".", "~")):
        there = [str(other) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        return difflib.get_close_matches(str(path), there)
    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except (CacheNotFound, ValueError):
        return []
    names = {repository.repo_id for repository in repositories if repository.repo_type == "model"}
    near = difflib.get_close_matches(model.lower(), [name.lower() for name in names])
    last = model.rsplit("/", 1)[-1].lower()
    return sorted(name for name in names if name.lower() in near or name.rsplit("/", 1)[-1].lower() == last)


def _shown(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return type(error).__name__
