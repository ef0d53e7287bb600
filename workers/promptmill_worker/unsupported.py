"""Sampling parameters that no engine honours yet: refused by name, never dropped."""

from __future__ import annotations

from typing import Any

from promptmill.errors import InvalidRequestError
from promptmill.sampling_params import SamplingParams

__all__ = ["refuse_unsupported"]

#: Each with the value that asks for nothing.
_NEUTRAL: dict[str, Any] = {
    "min_tokens": 0,
    "logprobs": None,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
}


def refuse_unsupported(sampling: SamplingParams) -> None:
    """Raises InvalidRequestError if ``sampling`` asks for something that would have to be dropped."""
    # Defaults are neutral; most requests set few fields, and the echo engine comes here 50,000 times a second.
    named = sampling.model_fields_set & _NEUTRAL.keys()
    if not named:
        return
    asked = sorted(name for name in named if getattr(sampling, name) != _NEUTRAL[name])
    if asked:
        raise InvalidRequestError(
            f"{' and '.join(asked)} can't be honoured by this worker: leave {'it' if len(asked) == 1 else 'them'} out"
        )
