"""Model folders for tests: of the real file formats, tiny, random, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

#: What begins, ends and pads a text.
SPECIAL = ("<s>", "</s>", "<pad>")


def tiny_model(path: Path, *, shard_bytes: int = 10**9, **config: Any) -> Path:
    """Writes a Llama of four layers, in float32, with a tokenizer of one token a byte; returns its folder.

    Args:
        path: The folder.
        shard_bytes: The most weights in one file, in bytes.
        config: What is different in its config.
    """
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    tokenizer = byte_tokenizer()
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **ids, **(shape | config)))
    model.save_pretrained(path, max_shard_size=shard_bytes)
    tokenizer.save_pretrained(path)
    return path


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token a byte."""
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad)
