"""What travels between a client and a worker: requests one way, results the other.

On the wire both are JSON. A chunk of requests is JSON lines, one request a line; an answer is one JSON object, either a
result or ``{"error": {"type", "args"}}``. ``WIRE_VERSION`` is written into every ledger record; a worker refuses a
record of a version that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json, to_json

from promptmill.errors import InvalidRequestError, PromptmillError, TaskFailedError, error_from_wire, error_to_wire
from promptmill.sampling_params import SamplingParams, Text, describe_invalid

__all__ = [
    "WIRE_VERSION",
    "Choice",
    "FinishReason",
    "GenerationRequest",
    "GenerationResult",
    "Message",
    "Timings",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
    "answer_from_wire",
    "answer_to_wire",
    "requests_from_wire",
    "requests_to_wire",
]

#: Raised when a record or an answer changes so that an older reader would misread it.
WIRE_VERSION = 1

FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class GenerationRequest(BaseModel):
    """One prompt, as bare text or as a chat, and how to sample its continuation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Text to continue as it stands; no chat template is put around it.
    prompt: Text | None = None
    #: Turns of a chat; the worker puts the model's chat template around them.
    messages: tuple[Message, ...] | None = None
    sampling: SamplingParams = Field(default_factory=SamplingParams)
    #: Whether its texts can be read while they are made; how they are made does not hang on it.
    stream: bool = False

    @model_validator(mode="after")
    def _has_one_input(self) -> GenerationRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either a prompt or messages, and not both")
        if self.prompt is not None and not self.prompt:
            raise ValueError("the prompt is empty")
        if self.messages is not None and not any(message.content for message in self.messages):
            raise ValueError("messages hold no text")
        return self

    @classmethod
    def of(
        cls,
        /,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any] | Message] | None = None,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        **overrides: Any,
    ) -> GenerationRequest:
        """The request that these arguments describe, checked.

        Raises:
            InvalidRequestError: no input or two, malformed messages, an unknown or out-of-range parameter.
        """
        sampling = SamplingParams.of(params, **overrides)
        try:
            fields = {"prompt": prompt, "messages": messages, "sampling": sampling}
            # What is not asked for does not travel.
            return cls.model_validate({**fields, "stream": stream} if stream else fields)
        except ValidationError as error:
            raise InvalidRequestError(describe_invalid(error, cls)) from None


class Usage(BaseModel):
    """Token counts of one request, over all its choices."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(BaseModel):
    """Where the time of one request went, in seconds."""

    model_config = ConfigDict(frozen=True)

    #: From submission until the prompt went into an engine: in the queue, and in the worker.
    queued_s: float = 0.0
    #: From then until its first token.
    time_to_first_token_s: float = 0.0
    #: From then until its last token.
    generation_s: float = 0.0


class TopLogprob(BaseModel):
    """How likely the model found one token at one position."""

    model_config = ConfigDict(frozen=True)

    #: The token's own text; that of half a character is "\ufffd".
    token: str
    token_id: int
    #: Natural logarithm of its probability, before penalties, temperature and the like; -9999 stands for log(0).
    logprob: float


class TokenLogprob(TopLogprob):
    """The token that was taken at one position, and the likeliest ones there."""

    #: The likeliest tokens, the likeliest first; the taken one need not be among them.
    top: tuple[TopLogprob, ...] = ()


class Choice(BaseModel):
    """One generated text."""

    model_config = ConfigDict(frozen=True)

    index: int
    #: Generated text only: the prompt is not repeated.
    text: str
    #: "stop": an end-of-text token, a stop string or a stop token; "length": max_tokens or the context.
    finish_reason: FinishReason
    #: One entry a generated token, also for the one or those that ended the text; None unless asked for.
    logprobs: tuple[TokenLogprob, ...] | None = None
    #: With ``window_tokens`` the part of the prompt that it belongs to: its first token, and the one after its last.
    window: tuple[int, int] | None = None


class GenerationResult(BaseModel):
    """The answer to one request."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    #: The task's id; "" when an engine was used without a queue.
    id: str = ""
    #: Position of the prompt in the iterable that was given to ``map``; 0 elsewhere.
    index: int = 0
    #: Served name of the model.
    model: str = ""
    choices: tuple[Choice, ...] = ()
    usage: Usage = Usage(prompt_tokens=0, completion_tokens=0)
    timings: Timings = Timings()
    #: Name of the worker that answered.
    worker: str = ""
    #: 1, and one more for each worker that was lost while it had the prompt.
    attempts: int = 1
    #: Set instead of choices by ``map(on_error="yield")``.
    error: PromptmillError | None = Field(None, exclude=True)

    @property
    def text(self) -> str:
        """The first choice's text, or those of all windows, a line break between two; "" when there is an error."""
        return "\n".join(choice.text for choice in self._told)

    @property
    def finish_reason(self) -> FinishReason | None:
        """The first choice's, or "length" if that ended any window; None when there is an error."""
        reasons = {choice.finish_reason for choice in self._told}
        return "length" if "length" in reasons else "stop" if reasons else None

    @property
    def _told(self) -> tuple[Choice, ...]:
        """The first choice, or with windows all of them."""
        return self.choices if self.choices and self.choices[0].window is not None else self.choices[:1]


_REQUEST = TypeAdapter(GenerationRequest)
_REQUESTS = TypeAdapter(list[GenerationRequest])


def requests_to_wire(requests: Sequence[GenerationRequest]) -> bytes:
    """A chunk as JSON lines, so that the ledger can take single requests out; what was not given is left out."""
    return b"\n".join(_REQUEST.dump_json(request, exclude_unset=True, exclude_none=True) for request in requests)


def requests_from_wire(wire: bytes) -> list[GenerationRequest | InvalidRequestError]:
    """The requests of a chunk, in order, and what is wrong with those that are not what ``requests_to_wire`` writes."""
    try:
        return [*_REQUESTS.validate_json(b"[" + wire.replace(b"\n", b",") + b"]")]
    except ValidationError:  # one of them is wrong: a newer client's, perhaps; the others are not to suffer from it
        return [_request_from_wire(line) for line in wire.split(b"\n")]


def _request_from_wire(line: bytes) -> GenerationRequest | InvalidRequestError:
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        return InvalidRequestError(describe_invalid(error, GenerationRequest))


def answer_to_wire(answer: GenerationResult | PromptmillError, queued_s: float = 0.0, **signature: Any) -> bytes:
    """An answer as one JSON object; an error begins with ``{"error":``, by which the ledger's scripts know it.

    Args:
        answer: The answer.
        queued_s: For ``Timings.queued_s`` of a result.
        signature: Other fields of a result that only its worker knows. (Writing them here spares a copy of the result,
            of each of millions.)
    """
    if isinstance(answer, PromptmillError):
        return to_json({"error": error_to_wire(answer)})
    fields = answer.model_dump(exclude_unset=True)
    fields.setdefault("timings", {})["queued_s"] = queued_s
    return to_json({**fields, **signature})


def answer_from_wire(wire: bytes | str, **given: Any) -> GenerationResult | PromptmillError:
    """The answer that ``answer_to_wire`` wrote; one that can't be read is a TaskFailedError, returned like any other.

    Args:
        wire: One JSON object.
        given: Fields of a result that only its reader knows.
    """
    try:
        fields = from_json(wire)
        if "error" in fields:
            return error_from_wire(fields["error"])
        return GenerationResult.model_validate({**fields, **given})
    except (LookupError, TypeError, ValueError) as error:
        return TaskFailedError(
            f"the answer can't be read ({type(error).__name__}): was it written by another version of promptmill?"
        )
