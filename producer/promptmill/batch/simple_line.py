"""Simple lines: ``{"prompt" | "messages", ...}`` with sampling parameters by their names."""

from __future__ import annotations

from typing import Any

from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationRequest
from promptmill.sampling_params import SamplingParams

__all__ = ["simple_id", "simple_request"]

_PARAMETERS = {*SamplingParams.model_fields, "max_completion_tokens"}


def simple_id(fields: dict[str, Any]) -> str | int | None:
    """Its ``custom_id`` or ``id``; None if that is neither text nor a whole number."""
    for name in ("custom_id", "id"):
        value = fields.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
    return None


def simple_request(
    fields: dict[str, Any], params: SamplingParams, field: str, chat: bool, system: str | None
) -> GenerationRequest:
    """What the line asks for; fields that are null count as missing, and those with other names don't count.

    Raises:
        InvalidRequestError: something is wrong with it.
    """
    overrides = {name: value for name, value in fields.items() if name in _PARAMETERS and value is not None}
    messages, prompt = fields.get("messages"), fields.get(field)
    if messages is None and prompt is None:
        raise InvalidRequestError(f"the line has neither {field!r} nor 'messages'")
    if prompt is not None and messages is None and (chat or system is not None):
        turns = [{"role": "system", "content": system}] if system else []
        messages, prompt = [*turns, {"role": "user", "content": prompt}], None
    return GenerationRequest.of(prompt, messages, params, **overrides)
