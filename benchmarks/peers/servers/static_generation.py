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
    """

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()

    def answer(self, chats: list[tuple[list[dict[str, str]], int]]) -> list[str]:
        """Texts of a batch of (messages, max_tokens): computed up to the longest, cut to each one's own length."""
        inputs = self._tokenizer.apply_chat_template(
            [messages for messages, _ in chats],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=max(most for _, most in chats), do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = [most for _, most in chats]
        return [
            self._tokenizer.decode(ids[:length], skip_special_tokens=True)
            for ids, length in zip(new, lengths, strict=True)
        ]
