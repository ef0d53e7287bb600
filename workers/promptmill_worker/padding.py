"""Whether prompts of different lengths may share a batch of a model."""

from __future__ import annotations

from typing import Any

import torch

from promptmill_worker.static_batch import greedy_config, padded

__all__ = ["padding_is_exact"]

#: The largest difference that padding may make to the logits, as a share of their spread, where they are rounded to
#: float32 and where to less. A model that reads its padding is off by more than the tenth.
EXACT_SHARE = {torch.float32: 1e-3}
ROUNDED_SHARE = 0.1

#: Length of the prompt with which padding is tried, of the padding, and of the text, in tokens.
TRIED_PROMPT_TOKENS = 5
TRIED_PADDING_TOKENS = 3
TRIED_TEXT_TOKENS = 3


def padding_is_exact(model: Any, pad_id: int) -> bool:
    """Whether a row that is padded on the left gets the logits that it gets without, tried out on ``model``."""
    vocabulary = model.get_input_embeddings().num_embeddings
    prompt = [1 + 7 * index % (vocabulary - 1) for index in range(TRIED_PROMPT_TOKENS)]
    alone, with_padding = (
        model.generate(
            **padded([prompt], len(prompt) + padding, pad_id, model.device),
            generation_config=greedy_config(TRIED_TEXT_TOKENS, pad_id),
            output_logits=True,
            return_dict_in_generate=True,
        )
        for padding in (0, TRIED_PADDING_TOKENS)
    )
    share = EXACT_SHARE.get(model.dtype, ROUNDED_SHARE)
    for one, other in zip(alone.logits, with_padding.logits, strict=True):
        if not (one - other).abs().max() <= share * one.float().std():  # NaN is not exact either
            return False
        if one.argmax() != other.argmax():  # a tie, by rounding; from here on the texts differ
            return True
    return True
