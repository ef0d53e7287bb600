"""Which files of a model are damaged: found when loading has failed, as the libraries don't say it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["damaged_files"]


def damaged_files(folder: Path) -> list[str]:
    """Names of the JSON files and safetensors in ``folder`` that can't be read or are cut short."""
    return [file.name for file in sorted(folder.iterdir()) if _is_damaged(file)]


def _is_damaged(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # reads the header, and compares it with the file's length
                pass
    except (OSError, SafetensorError, ValueError):
        return True
    return False
