"""Plain Celery calls of ``promptmill.generate``, from applications that don't use our client."""

from __future__ import annotations

import uuid
from typing import Any

from celery.worker.request import Request
from kombu.utils import json

from promptmill.errors import InvalidRequestError
from promptmill.ledger import Entry
from promptmill.names import Priority, again_queue_name, lane_name
from promptmill.protocol import GenerationRequest, requests_to_wire

__all__ = ["entry_of_call", "request_of_call"]


def request_of_call(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> GenerationRequest:
    """The request that a call's arguments describe.

    Args:
        arguments: Nothing, or one prompt: text, a list of messages, or the result of a ``promptmill.generate`` before
            it in a chain, whose text is then the prompt.
        keywords: ``prompt`` or ``messages``, and sampling parameters by name.

    Raises:
        InvalidRequestError: as ``GenerationRequest.of``, or for more than one positional argument.
    """
    if len(arguments) > 1:
        raise InvalidRequestError(f"promptmill.generate takes one prompt, and was given {len(arguments)} arguments")
    if arguments:
        if "prompt" in keywords or "messages" in keywords:
            raise InvalidRequestError("give either a prompt or messages, and not both")
        [given] = arguments
        if isinstance(given, dict) and isinstance(given.get("text"), str):
            given = given["text"]
        keywords = {**keywords, "messages" if isinstance(given, list) else "prompt": given}
    for name in ("id", "params", "stream"):
        if name in keywords:
            raise InvalidRequestError(f"unknown parameter {name!r}")
    return GenerationRequest.of(**keywords)


def entry_of_call(request: Request, served_name: str, timeout_s: float, result_ttl_s: int) -> Entry | None:
    """The ledger record of a plain call; None for a call that is wrong and will only be answered so.

    The message itself goes into the record, and is published again if the call has to be queued again: under the same
    Celery id, so that the caller's ``.get()`` still finds the result.
    """
    try:
        wanted = request_of_call(tuple(request.args), dict(request.kwargs))
    except InvalidRequestError:
        return None
    queue = again_queue_name(served_name)
    return Entry(
        record_id=request.id,
        lane=lane_name(queue, Priority.FRONT),
        requests=requests_to_wire([wanted]),
        count=1,
        timeout_s=timeout_s,
        result_ttl_s=result_ttl_s,
        message_halves=_message_halves(request.message, queue),
    )


#: Headers that are not true of the message when it is published again; its body has been decompressed.
_OF_THIS_DELIVERY = frozenset({"compression", "redelivered"})

#: Stands where each publication puts a delivery tag of its own; nobody can have put it into a prompt.
_TAG_MARK = f"delivery tag {uuid.uuid4().hex}"


def _message_halves(message: Any, queue: str) -> tuple[str, str]:
    """The message for ``queue`` as kombu's Redis transport stores it, cut where the delivery tag belongs."""
    body = message.body
    stored = {
        "body": body.decode() if isinstance(body, bytes) else body,
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": {name: value for name, value in message.headers.items() if name not in _OF_THIS_DELIVERY},
        "properties": {
            "correlation_id": message.properties.get("correlation_id"),
            "reply_to": message.properties.get("reply_to"),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": int(Priority.FRONT),
            "body_encoding": "utf-8",
            "delivery_tag": _TAG_MARK,
        },
    }
    # kombu's, as headers may hold what it alone reads and writes: times, for example.
    head, tail = json.dumps(stored).split(_TAG_MARK)
    return head, tail
