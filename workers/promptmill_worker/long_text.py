"""The part of a request that may be too long: a bare prompt, or the last message of a chat's user.

What else is in a chat, the instructions and the template around it, stays whole when this is cut.
"""

from __future__ import annotations

from collections.abc import Callable

from promptmill.errors import InvalidRequestError, PromptTooLongError
from promptmill.protocol import GenerationRequest
from promptmill_worker.windows import Spans, cut_beginning

__all__ = ["long_text", "truncated_ids", "with_long_text"]


def long_text(request: GenerationRequest) -> str:
    """The text that is cut.

    Raises:
        InvalidRequestError: a chat without a user's message.
    """
    return request.prompt or "" if request.messages is None else request.messages[_last_of_user(request)].content


def with_long_text(request: GenerationRequest, text: str) -> GenerationRequest:
    """The request with another text in that place."""
    if request.messages is None:
        return request.model_copy(update={"prompt": text})
    at = _last_of_user(request)
    message = request.messages[at].model_copy(update={"content": text})
    return request.model_copy(update={"messages": (*request.messages[:at], message, *request.messages[at + 1 :])})


def truncated_ids(
    request: GenerationRequest,
    prompt_ids: list[int],
    limit_tokens: int,
    ids_of: Callable[[GenerationRequest], list[int]],
    spans_of: Callable[[str], Spans],
) -> list[int]:
    """The prompt in at most ``limit_tokens`` tokens: without the beginning of its long text.

    Args:
        request: What was asked.
        prompt_ids: All of it in tokens.
        limit_tokens: How many may be left.
        ids_of: A request in tokens, with what the template or the tokenizer puts around its text.
        spans_of: Where the tokens of a text are in it.

    Raises:
        InvalidRequestError: a chat without a user's message.
        PromptTooLongError: what is around the text has more tokens than that already.
    """
    text, cut = long_text(request), 0
    spans = spans_of(text)
    while (over := len(prompt_ids) - limit_tokens) > 0:
        if cut >= len(spans):
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids):,} tokens besides the text that is cut, more than "
                f"truncate_prompt_tokens, {limit_tokens:,}: of a chat only the last message of the user is cut",
                len(prompt_ids),
                limit_tokens,
            )
        cut += over  # once, or a little more often: next to the cut tokens may join differently
        prompt_ids = ids_of(with_long_text(request, cut_beginning(text, spans, cut)))
    return prompt_ids


def _last_of_user(request: GenerationRequest) -> int:
    messages = request.messages or ()
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user":
            return at
    raise InvalidRequestError(
        "window_tokens and truncate_prompt_tokens cut the last message of a chat's user, and this chat has none"
    )
