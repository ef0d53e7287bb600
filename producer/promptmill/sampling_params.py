"""How the next token is chosen, and when to stop."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from promptmill.errors import InvalidRequestError

__all__ = ["SamplingParams", "Text", "describe_invalid"]

#: The longest list of stop strings or stop tokens that one request may carry.
MAX_STOPS = 64


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which no UTF-8 text can hold") from None
    return text


#: Text that can travel as UTF-8, and that a tokenizer takes.
Text = Annotated[str, AfterValidator(_encodable)]

StopString = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_encodable)]


class SamplingParams(BaseModel):
    """The sampling parameters of one request, by the names of OpenAI's API and of vLLM.

    A parameter that a worker can't honour ends the task in an ``InvalidRequestError``; none is dropped silently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    #: The most tokens to generate; generation never goes beyond the model's context.
    max_tokens: int = Field(
        256, ge=1, le=1_000_000, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    #: No stop token or stop string ends the text before this many tokens.
    min_tokens: int = Field(0, ge=0, le=1_000_000)
    #: 0 is greedy, 1 draws from the model's own distribution, more flattens it.
    temperature: float = Field(1.0, ge=0.0, le=2.0, allow_inf_nan=False)
    #: Draw from the smallest set of tokens whose probabilities add up to this.
    top_p: float = Field(1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    #: Draw from this many most likely tokens; 0 is all of them.
    top_k: int = Field(0, ge=0, le=1_000_000)
    #: Drop tokens less likely than this share of the likeliest one's probability.
    min_p: float = Field(0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    #: How many texts to generate for the prompt.
    n: int = Field(1, ge=1, le=128)
    #: The same seed and request give the same text; none draws a seed.
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    #: Strings that end the text; they are not part of it unless include_stop_str_in_output is set.
    stop: Annotated[tuple[StopString, ...], BeforeValidator(_as_tuple)] = Field((), max_length=MAX_STOPS)
    #: Token ids that end the text.
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field((), max_length=MAX_STOPS)
    #: Go on after the model's end-of-text token.
    ignore_eos: bool = False
    #: Keep the stop string at the end of the text.
    include_stop_str_in_output: bool = False
    #: Leave the tokenizer's special tokens out of the text.
    skip_special_tokens: bool = True
    #: Return the log-probabilities of this many most likely tokens at each position.
    logprobs: int | None = Field(None, ge=0, le=20)
    #: Above 1 makes tokens of the prompt and the text less likely (multiplicative).
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0, allow_inf_nan=False)
    #: Subtracted once from the logit of every token that is in the text.
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0, allow_inf_nan=False)
    #: Subtracted from a token's logit for each time it is in the text.
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0, allow_inf_nan=False)
    #: Added to the logits of these token ids.
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict
    )
    #: Keep only this many tokens of a longer prompt, its last ones; of a chat the last user message is cut.
    truncate_prompt_tokens: int | None = Field(None, ge=1)
    #: Cut the prompt, or a chat's last user message, into windows of this many tokens, each with a text of its own.
    window_tokens: int | None = Field(None, ge=1, le=1_000_000)
    #: From the beginning of one window to that of the next; without it there is no overlap.
    stride_tokens: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _windows_cover_the_text(self) -> SamplingParams:
        if self.window_tokens is None:
            if self.stride_tokens is not None:
                raise ValueError("stride_tokens needs window_tokens")
        elif (self.stride_tokens or 1) > self.window_tokens:
            raise ValueError(
                f"stride_tokens {self.stride_tokens} would skip text between windows of {self.window_tokens}: it is at "
                "most window_tokens"
            )
        elif self.n > 1:
            raise ValueError("n and window_tokens don't go together: each window has one text")
        elif self.truncate_prompt_tokens is not None:
            raise ValueError(
                "truncate_prompt_tokens and window_tokens don't go together: windows are of the whole text"
            )
        return self

    @classmethod
    def of(cls, params: SamplingParams | None = None, /, **overrides: Any) -> SamplingParams:
        """``params``, or the defaults, with ``overrides`` on top.

        Raises:
            InvalidRequestError: a name is unknown or a value is out of its range.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"params: give SamplingParams(...), this is a {type(params).__name__}")
        if params is not None and not overrides:
            return params
        given = params.model_dump(exclude_unset=True) if params is not None else {}
        if "max_completion_tokens" in overrides:
            given.pop("max_tokens", None)
        try:
            return cls.model_validate({**given, **overrides})
        except ValidationError as error:
            raise InvalidRequestError(describe_invalid(error, cls)) from None


#: Parameters whose values may be shown: all but a user's texts. What is no parameter is never shown: it may be, or
#: hold, the prompt.
_SHOWN_FIELDS = frozenset(SamplingParams.model_fields) - {"stop"}

#: pydantic's names for a number beyond a bound.
_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})

#: The longest value that is shown whole, in characters.
SHOWN_LENGTH = 80


def describe_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence that names the field, its value (unless that may be a prompt) and what the field takes."""
    first = error.errors(include_url=False, include_context=False)[0]
    model, place = _innermost(model, first["loc"])
    path = [str(part).encode(errors="backslashreplace").decode() for part in place] or ["request"]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"unknown parameter {name!r}; known are {known}"
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "value_error":  # raised by a validator of ours, its input may be the whole request
        message = first["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if place else message
    if _SHOWN_FIELDS.isdisjoint(path):
        return f"{name}: {first['msg']}"
    field_range = _range_of(model, path[0])
    why = f" (range: {field_range})" if first["type"] in _OUT_OF_RANGE and field_range else f": {first['msg']}"
    return f"{name}: {_shown(first['input'])} is not allowed{why}"


def _innermost(model: type[BaseModel], place: tuple[int | str, ...]) -> tuple[type[BaseModel], tuple[int | str, ...]]:
    """The model within ``model`` that a place is in, and the place in that one: the one that a user has written."""
    field = model.model_fields.get(str(place[0])) if len(place) > 1 else None
    if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
        return model, place
    return _innermost(field.annotation, place[1:])


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"this {type(value).__name__}"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}…"


def _range_of(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " and ".join(
        f"{signs[kind]} {getattr(bound, kind)}"
        for bound in (field.metadata if field else ())
        for kind in signs
        if getattr(bound, kind, None) is not None
    )
