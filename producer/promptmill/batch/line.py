"""One line of a batch: what it asks for, and how it is known again."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json, to_json

from promptmill.batch.input_file import MAX_LINE_BYTES
from promptmill.batch.model_choice import ModelChoice, NotServedError
from promptmill.batch.openai_line import is_openai_line, openai_request
from promptmill.batch.simple_line import simple_id, simple_request
from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationRequest, requests_to_wire
from promptmill.sampling_params import SamplingParams

__all__ = ["Line", "LineFormat", "Ticket", "checksum_of", "read_line"]


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How lines are meant.

    Args:
        params: Sampling parameters of lines that don't say otherwise.
        prompt_field: Which field of a simple line holds its prompt.
        chat: Whether such a prompt is sent as a user's turn.
        system: System message of every such chat; implies ``chat``.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    prompt_field: str = "prompt"
    chat: bool = False
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is kept of a line until it is answered."""

    #: Counted from 1.
    number: int
    #: 16 bits that change with the line as it is written, whatever the options are.
    checksum: int
    #: 64 bits that change with the request, its model and its id.
    digest: int
    #: Its ``custom_id``, or a simple line's ``id``; None if it has none.
    custom_id: str | int | None
    #: Whether it is answered with a chat.completion, or with a text_completion.
    is_chat: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One line that was read."""

    ticket: Ticket
    #: Served name of the model that shall answer; "" where the request is wrong.
    model: str
    request: GenerationRequest | InvalidRequestError


def read_line(
    number: int, raw: bytes, given: LineFormat, models: ModelChoice, settled: Callable[[int, int], int | None]
) -> Line:
    """The line; what is wrong with it is in the place of its request.

    A line that is settled keeps its digest where its model is not served: what became of it stands.

    Args:
        number: Its number.
        raw: What is written there.
        given: How it is meant.
        models: Those that it may name.
        settled: See ``Answers.settled``.

    Raises:
        PromptmillError: it names no model, and ``models`` can't choose one.
    """
    checksum = checksum_of(raw)
    custom_id: str | int | None = None
    named: str | None = None
    try:
        fields = _object(raw)
        if is_openai_line(fields):
            custom_id = fields.get("custom_id") if isinstance(fields.get("custom_id"), str) else None
            request, wanted = openai_request(fields, given.params)
            named = models.named(wanted, lambda: settled(number, checksum) is not None) if wanted else None
        else:
            custom_id = simple_id(fields)
            request = simple_request(fields, given.params, given.prompt_field, given.chat, given.system)
    except InvalidRequestError as error:
        kept = settled(number, checksum) if isinstance(error, NotServedError) else None
        digest = _digest(raw) if kept is None else kept
        return Line(Ticket(number, checksum, digest, custom_id, is_chat=False), "", error)
    model = named or models.default()
    digest = _digest(to_json([model, custom_id]), requests_to_wire([request]))
    return Line(Ticket(number, checksum, digest, custom_id, request.messages is not None), model, request)


def checksum_of(raw: bytes) -> int:
    """See ``Ticket.checksum``."""
    return crc_hqx(raw, 0)


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidRequestError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        fields = from_json(raw)
    except ValueError as error:
        raise InvalidRequestError(f"not a line of JSON: {str(error).replace(' at line 1', ' at')}") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"a line is a JSON object, this is a {type(fields).__name__}")
    return fields


def _digest(*parts: bytes) -> int:
    return int.from_bytes(blake2b(b"\n".join(parts), digest_size=8).digest())
