"""Small models of random weights, of any kind that transformers has, and what it generates with them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.settings import EngineSettings

__all__ = ["ATTENTION", "SHAPE", "by_generate", "save", "settings"]

CHARACTERS = [chr(code) for code in range(32, 127)]
SPECIAL = ["<pad>", "<unk>", "<eos>"]

SHAPE: dict[str, Any] = {
    "vocab_size": len(SPECIAL + CHARACTERS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
ATTENTION: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each printable character of ASCII."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
    bare = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    bare.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def save(config: PreTrainedConfig, folder: Path) -> str:
    """A folder with a small model of that kind, whose texts are noise but no mere repetition."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def settings(model: str, **options: Any) -> EngineSettings:
    """Engine settings for quick tests."""
    return EngineSettings.read(model=model, **{"dtype": "float32", "threads": 1, "max_batch": 8, **options})


def by_generate(checkpoint: Checkpoint, prompt: str, max_tokens: int) -> str:
    """What transformers' own generate() answers to a prompt alone, greedily."""
    inputs = checkpoint.tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = checkpoint.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, eos_token_id=2)
    return str(checkpoint.tokenizer.decode(out[0, inputs["input_ids"].size(1) :], skip_special_tokens=True))
