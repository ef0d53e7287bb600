"""Static batches with transformers' ``generate()``, for all ways that make batches by themselves."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["StaticModel"]


class StaticModel:
    """A loaded model.

    Args:
        folder: Of the model.
        dtype: "float32" or "bfloat16".
        threads: Of torch.

    Raises:
        ValueError: the model has an end token: what follows one in a row would be counted as generated.
    """

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
        if self._model.generation_config.eos_token_id is not None:
            raise ValueError(f"{folder} has an end token")

    def answer(self, chats: list[tuple[list[dict[str, str]], int]]) -> list[tuple[str, int]]:
        """Text and its tokens of each (messages, max_tokens): computed up to the longest, cut to its own length."""
        inputs = self._tokenizer.apply_chat_template(
            [messages for messages, _ in chats],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=max(most for _, most in chats), do_sample=False)
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = [ids[:most] for ids, (_, most) in zip(rows, chats, strict=True)]
        return [(self._tokenizer.decode(ids, skip_special_tokens=True), len(ids)) for ids in texts]
