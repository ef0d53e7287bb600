"""A copy of a model whose texts end at ``max_tokens`` alone: then all ways generate the same number of tokens."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["never_ending_copy"]


def never_ending_copy(model: Path, folder: Path) -> Path:
    """Links to the files of ``model`` in ``folder``, and its configurations without an end token.

    Args:
        model: A folder that transformers loads.
        folder: Is made.

    Returns:
        ``folder``.
    """
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name in ("config.json", "generation_config.json"):
            configuration = json.loads(file.read_text(encoding="utf-8"))
            configuration["eos_token_id"] = None
            (folder / file.name).write_text(json.dumps(configuration), encoding="utf-8")
        else:
            (folder / file.name).symlink_to(file)
    return folder
