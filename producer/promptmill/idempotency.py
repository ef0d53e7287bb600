"""Idempotency keys: the same key is the same task, however often it is submitted."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationRequest

__all__ = ["key_and_digest"]

#: The longest key, in characters.
MAX_KEY_LENGTH = 256


def key_and_digest(given: Any, queue: str, request: GenerationRequest) -> tuple[str, str]:
    """What the broker is told of a key and of the request that belongs to it: SHA-256 in hex, of both.

    Two requests have the same digest if the same queue and the same parameters were asked for, whether by name or by
    default. Priority, deadline and whether the text is streamed don't count: the answer does not hang on them. The key
    goes into the digest, so that nobody who reads the broker can tell equal prompts by it.

    Args:
        given: The user's key: 1 to 256 characters. It may be private, and is never shown.
        queue: The model's.
        request: What is asked for.

    Raises:
        InvalidRequestError: ``given`` is no key.
    """
    key = _checked(given)
    sampling = request.sampling.model_dump(mode="json", exclude_defaults=True)
    asked = request.model_dump(mode="json", include={"prompt", "messages"})
    identity = json.dumps([given, queue, asked, sampling], sort_keys=True)
    return hashlib.sha256(key).hexdigest(), hashlib.sha256(identity.encode()).hexdigest()


def _checked(given: Any) -> bytes:
    if not isinstance(given, str):
        raise InvalidRequestError(f"idempotency_key: give a string, this is of type {type(given).__name__}")
    if not 1 <= len(given) <= MAX_KEY_LENGTH:
        raise InvalidRequestError(
            f"idempotency_key: {len(given):,} characters are not allowed (range: ≥ 1 and ≤ {MAX_KEY_LENGTH})"
        )
    try:
        return given.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"idempotency_key: character {error.start} is half of a surrogate pair, which no UTF-8 text can hold"
        ) from None
