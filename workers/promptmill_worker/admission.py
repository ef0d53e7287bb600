"""From a request to tokens that the running batch can take; what it can't take is refused here.

A prompt that doesn't fit the cache, or a token that the model has no embedding for, would end transformers' loop
and with it everybody's generation. So nothing reaches the loop that has not passed this gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from promptmill.errors import InvalidRequestError, PromptTooLongError
from promptmill.protocol import GenerationRequest
from promptmill_worker.long_text import truncated_ids
from promptmill_worker.windows import Spans

__all__ = ["Admission", "Admitted"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request in tokens."""

    prompt_ids: list[int]
    #: The most tokens to generate, within the context.
    max_tokens: int
    #: Tokens that end the text.
    end_ids: frozenset[int]


class Admission:
    """The gate in front of the running batch. Any thread may call it.

    Args:
        tokenizer: The model's tokenizer.
        end_ids: The model's own end-of-text tokens.
        vocabulary: How many tokens the model has embeddings for.
        limit_tokens: Longest prompt and text together that fit the context and the cache, in tokens.
    """

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], vocabulary: int, limit_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._vocabulary = vocabulary
        self._limit_tokens = limit_tokens
        # A tokenizer.json may come with truncation switched on; the first call switches it off, which must not
        # happen while another thread encodes.
        tokenizer("warm up")

    def admit(self, request: GenerationRequest) -> Admitted:
        """The request in tokens.

        Raises:
            InvalidRequestError: a parameter names tokens that there are not, the model has no chat template, or the
                prompt has no tokens, or unknown ones.
            PromptTooLongError: the prompt leaves no room for a single token, or can't be truncated enough.
        """
        sampling = request.sampling
        self._refuse_unknown_tokens(sampling.stop_token_ids, "stop_token_ids")
        self._refuse_unknown_tokens(sampling.logit_bias, "logit_bias")
        prompt_ids = self._tokens(request)
        limit = sampling.truncate_prompt_tokens
        if limit is not None and len(prompt_ids) > limit:
            prompt_ids = truncated_ids(request, prompt_ids, limit, self._tokens, self.token_spans)
        if not prompt_ids:
            raise InvalidRequestError("the prompt has no tokens: the model's tokenizer drops all of its text")
        self._refuse_unknown_tokens(prompt_ids, "the prompt")
        room = self._limit_tokens - len(prompt_ids)
        if room < 1:
            longest = self._limit_tokens - 1
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids):,} tokens, at most {longest:,} fit this worker's context: "
                "shorten it, or set truncate_prompt_tokens or window_tokens",
                len(prompt_ids),
                longest,
            )
        own = frozenset() if sampling.ignore_eos else self._end_ids
        return Admitted(prompt_ids, min(sampling.max_tokens, room), own | set(sampling.stop_token_ids))

    def token_spans(self, text: str) -> Spans:
        """See ``Engine.token_spans``."""
        if not self._tokenizer.is_fast:
            raise InvalidRequestError(
                "window_tokens and truncate_prompt_tokens can't be honoured: the tokenizer of this model does not tell "
                "where its tokens are in the text (it is none of the fast ones); cut the text before you send it"
            )
        tokens = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(tokens["offset_mapping"])

    def _tokens(self, request: GenerationRequest) -> list[int]:
        if request.messages is None:
            return list(self._tokenizer(request.prompt)["input_ids"])
        if not self._tokenizer.chat_template:
            raise InvalidRequestError("this model has no chat template: send a prompt instead of messages")
        messages = [message.model_dump() for message in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            # Without the template's own words: they may quote a message.
            raise InvalidRequestError(
                "the model's chat template refuses these messages: many take an optional system message first, then "
                "user and assistant in turn"
            ) from None
        # The template has written the special tokens already.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refuse_unknown_tokens(self, token_ids: Any, what: str) -> None:
        if token_ids and max(token_ids) >= self._vocabulary:
            raise InvalidRequestError(
                f"{what}: token {max(token_ids)} is not in the model's vocabulary of {self._vocabulary:,}"
            )
