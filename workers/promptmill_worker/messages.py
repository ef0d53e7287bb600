"""What a message in our queues has to look like: kombu's envelope around a call in Celery's protocol."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeVar

from celery.app.task import Context
from kombu.exceptions import KombuError
from kombu.message import Message
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from promptmill.names import GENERATE_TASK, RUN_TASK
from promptmill_worker.pointer_shape import is_call_of_pointer

__all__ = ["MalformedMessageError", "check_call", "check_envelope"]

Model = TypeVar("Model", bound=BaseModel)

#: Lists within lists. Beyond some hundreds Python itself gives up, at a place that nobody has chosen.
MAX_DEPTH = 100


#: A header of such a name, and none of Celery's protocol, would replace what Celery knows of the call.
RESERVED_HEADERS = frozenset(dir(Context)) - {"headers", "origin"}


class MalformedMessageError(ValueError):
    """A message is not what it should be; says where, and quotes nothing of it."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


#: It becomes part of keys, events and log lines.
Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)]


class _Part(BaseModel):
    # Strict: a number is no text. What we don't know is the application's own, and stays.
    model_config = ConfigDict(strict=True, extra="ignore")


class _DeliveryInfo(_Part):
    exchange: str
    routing_key: str


class _Properties(_Part):
    delivery_tag: Name
    delivery_info: _DeliveryInfo
    body_encoding: str | None = None
    correlation_id: Name | None = None
    reply_to: str | None = None


class _Envelope(_Part):
    body: str
    content_type: str = Field(alias="content-type")
    content_encoding: str = Field(alias="content-encoding")
    headers: dict[str, Any]
    properties: _Properties


class _Headers(_Part):
    task: Name
    id: Name
    root_id: Name | None = None
    parent_id: Name | None = None
    group: Name | None = None
    group_index: int | None = None
    shadow: Name | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    timelimit: Annotated[list[float | None], Field(min_length=2, max_length=2)] | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None


class _Signature(_Part):
    task: str
    arguments: list[Any] | None = Field(None, validation_alias=AliasChoices("args"))
    keywords: dict[str, Any] | None = Field(None, validation_alias=AliasChoices("kwargs"))
    options: dict[str, Any] | None = None


class _Embedded(_Part):
    # Celery would take whatever else is in here for its own, above what it knows itself.
    model_config = ConfigDict(extra="forbid")

    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


class _Call(_Part):
    arguments: list[Any]
    keywords: dict[str, Any]
    embedded: _Embedded | None


def check_envelope(raw: Any) -> None:
    """Checks what kombu has read from a queue's list, before it makes a message of it.

    Raises:
        MalformedMessageError: it is not what kombu's Redis transport writes.
    """
    _check_depth(raw)
    _fit(_Envelope, raw, "the message")


def check_call(message: Message, lanes: Collection[str]) -> None:
    """Checks a message's headers and body.

    Args:
        message: One in a good envelope; ``is_pointer`` is set if it is one of the ledger's, to the letter.
        lanes: The lanes of this worker's queues: a pointer comes from one of them.

    Raises:
        MalformedMessageError: it is no call in Celery's protocol 2, or a pointer that the ledger has not written.
    """
    is_ours = getattr(message, "is_pointer", False)
    if not is_ours:
        _fit(_Headers, message.headers, "headers")
        if not RESERVED_HEADERS.isdisjoint(message.headers.keys() - _Headers.model_fields.keys()):
            raise MalformedMessageError("headers: one that is Celery's own")
    message.accept = {"application/json"}
    try:
        payload = message.payload
    except (KombuError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Their messages quote what they could not read.
        raise MalformedMessageError(f"body: can't be decoded ({type(error).__name__})") from None
    if is_ours and is_call_of_pointer(payload):
        _check_pointer(payload[0], lanes)
        return
    if not isinstance(payload, list) or len(payload) != 3:
        raise MalformedMessageError("body: not a list of arguments, keywords and options")
    _check_depth(payload)
    call = _fit(_Call, dict(zip(_Call.model_fields, payload, strict=True)), "body")
    task = message.headers["task"]
    if task == RUN_TASK:
        if call.keywords:
            raise MalformedMessageError("body: not the arguments of a pointer")
        _check_pointer(call.arguments, lanes)
    elif task != GENERATE_TASK and task.startswith("celery."):
        raise MalformedMessageError("headers.task: one of Celery's own tasks")


def _check_pointer(arguments: list[Any], lanes: Collection[str]) -> None:
    if len(arguments) != 4 or not all(isinstance(argument, str) for argument in arguments):
        raise MalformedMessageError("body: not the arguments of a pointer")
    _, lane, score, count = arguments
    # The ledger remembers the highest score of each lane that is named to it.
    if lane not in lanes or not _is_number(score, digits=17) or not _is_number(count, digits=5):
        raise MalformedMessageError("body: not the arguments of a pointer")


def _is_number(text: str, digits: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= digits


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise MalformedMessageError(f"nested more than {MAX_DEPTH} levels deep")
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children += item.values()
            elif isinstance(item, list):
                children += item
        level, depth = children, depth + 1


def _fit(model: type[Model], value: Any, where: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(part for part in first["loc"] if isinstance(part, str))
        raise MalformedMessageError(f"{where}: {path or 'no mapping'} ({first['type']})") from None
