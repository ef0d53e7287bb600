"""Answers in the format of OpenAI's batch output."""

from __future__ import annotations

import time
import uuid
from itertools import accumulate
from typing import Any

from promptmill.errors import (
    InvalidRequestError,
    PromptmillError,
    PromptTooLongError,
    TaskCancelledError,
    TaskExpiredError,
)
from promptmill.protocol import Choice, GenerationResult, TopLogprob

__all__ = ["openai_answer"]

#: What OpenAI calls errors that are no answers of its server.
_NEVER_ANSWERED = {TaskExpiredError: "batch_expired", TaskCancelledError: "batch_cancelled"}


def openai_answer(custom_id: str, result: GenerationResult, is_chat: bool) -> dict[str, Any]:
    """One line: ``id``, ``custom_id``, ``response`` and ``error``."""
    request_id = result.id or uuid.uuid4().hex
    line: dict[str, Any] = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": None, "error": None}
    if result.error is None:
        body = _chat_completion(result) if is_chat else _text_completion(result)
        line["response"] = {"status_code": 200, "request_id": request_id, "body": body}
    elif type(result.error) in _NEVER_ANSWERED:
        line["error"] = {"code": _NEVER_ANSWERED[type(result.error)], "message": result.error.message}
    else:
        line["response"] = {"request_id": request_id, **_refusal(result.error)}
    return line


def _refusal(error: PromptmillError) -> dict[str, Any]:
    is_callers = isinstance(error, InvalidRequestError | PromptTooLongError)
    code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else type(error).__name__
    kind = "invalid_request_error" if is_callers else "server_error"
    body = {"error": {"message": error.message, "type": kind, "param": None, "code": code}}
    return {"status_code": 400 if is_callers else 500, "body": body}


def _chat_completion(result: GenerationResult) -> dict[str, Any]:
    choices = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _chat_logprobs(choice),
            "finish_reason": choice.finish_reason,
            **_window(choice),
        }
        for choice in result.choices
    ]
    return _body("chatcmpl", "chat.completion", result, choices)


def _text_completion(result: GenerationResult) -> dict[str, Any]:
    choices = [
        {
            "index": choice.index,
            "text": choice.text,
            "logprobs": _text_logprobs(choice),
            "finish_reason": choice.finish_reason,
            **_window(choice),
        }
        for choice in result.choices
    ]
    return _body("cmpl", "text_completion", result, choices)


def _body(prefix: str, kind: str, result: GenerationResult, choices: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {**result.usage.model_dump(), "total_tokens": result.usage.total_tokens}
    return {
        "id": f"{prefix}-{result.id}",
        "object": kind,
        "created": int(time.time()),
        "model": result.model,
        "choices": choices,
        "usage": usage,
        "system_fingerprint": None,
    }


def _window(choice: Choice) -> dict[str, Any]:
    return {} if choice.window is None else {"window": choice.window}


def _chat_logprobs(choice: Choice) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    content = [{**_logprob(token), "top_logprobs": [_logprob(top) for top in token.top]} for token in choice.logprobs]
    return {"content": content, "refusal": None}


def _logprob(token: TopLogprob) -> dict[str, Any]:
    # Which bytes half a character has is not known here.
    encoded = None if "\ufffd" in token.token else list(token.token.encode())
    return {"token": token.token, "logprob": token.logprob, "bytes": encoded}


def _text_logprobs(choice: Choice) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    tokens = [token.token for token in choice.logprobs]
    tops = [{top.token: top.logprob for top in token.top} for token in choice.logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in choice.logprobs],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": list(accumulate((len(token) for token in tokens[:-1]), initial=0)) if tokens else [],
    }
