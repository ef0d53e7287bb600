"""GGUF files: converted once to a folder that transformers loads in seconds.

transformers reads GGUF by dequantising it in Python, which takes up to a minute each time. The converted copy lies
in the cache folder under a name made from the file's size, time and content.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers.modeling_gguf_pytorch_utils
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["converted_copy", "gguf_file"]

#: Goes into a copy's name; raised when the conversion changes.
_FORMAT = 1

#: How much of the file's beginning and end is hashed, in bytes; the whole may be tens of gigabytes.
_HASHED_BYTES = 1024 * 1024


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that ``path`` names: itself, or the only one in a folder without safetensors."""
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 and not any(path.glob("*.safetensors")) else None


def converted_copy(file: Path, cache_dir: Path) -> Path:
    """The folder with the converted copy of ``file``, made now if need be.

    Of several processes at once one converts, the others wait for it. A conversion that was killed leaves nothing
    that looks finished.
    """
    folder = cache_dir.expanduser() / "gguf"
    target = folder / f"{file.stem}-{_digest(file)}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            _convert(file, unfinished)
            unfinished.rename(target)
    return target


def _digest(file: Path) -> str:
    about = file.stat()
    digest = hashlib.sha256(f"{_FORMAT}:{about.st_size}:{about.st_mtime_ns}".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_HASHED_BYTES))
        stream.seek(max(0, about.st_size - _HASHED_BYTES))
        digest.update(stream.read(_HASHED_BYTES))
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # goes with the process, however that ends
        yield


def _convert(file: Path, folder: Path) -> None:
    # It draws its bar past the switch for progress bars that the rest of transformers obeys.
    transformers.modeling_gguf_pytorch_utils.tqdm = transformers.utils.logging.tqdm
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    quantised = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    # save_pretrained refuses a model that was loaded from GGUF, so its weights go into one that was not.
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
