"""What the ledger's own messages look like, to the letter: one that does needs none of the checks of a stranger's."""

from __future__ import annotations

import json
from typing import Any

from promptmill.ledger.scripts import POINTER_TEMPLATE

__all__ = ["is_call_of_pointer", "is_pointer"]

_TEMPLATE: dict[str, Any] = json.loads(POINTER_TEMPLATE.replace("@priority@", "0"))
_HEADERS, _PROPERTIES = _TEMPLATE["headers"], _TEMPLATE["properties"]
_, _NO_KEYWORDS, _NO_NEXT_STEPS = json.loads(_TEMPLATE["body"])

#: Celery's priorities in Redis.
_HIGHEST, _LOWEST = 0, 9


def is_pointer(raw: Any) -> bool:
    """Whether a message, as kombu has read it, is as the ledger writes it but for its body, which is any text."""
    try:
        headers, properties = raw["headers"], raw["properties"]
        task_id, prompts = headers["id"], headers["argsrepr"]
        tag, queue = properties["delivery_tag"], properties["delivery_info"]["routing_key"]
        body, priority = raw["body"], properties["priority"]
    except (LookupError, TypeError):
        return False
    if not (all(map(_is_name, (task_id, prompts, tag, queue))) and isinstance(body, str)):
        return False
    return (
        type(priority) is int
        and _HIGHEST <= priority <= _LOWEST
        and bool(
            raw
            == {
                **_TEMPLATE,
                "body": body,
                "headers": {**_HEADERS, "id": task_id, "root_id": task_id, "argsrepr": prompts},
                "properties": {
                    **_PROPERTIES,
                    "correlation_id": task_id,
                    "delivery_info": {"exchange": "", "routing_key": queue},
                    "priority": priority,
                    "delivery_tag": tag,
                },
            }
        )
    )


def is_call_of_pointer(payload: Any) -> bool:
    """Whether a decoded body is as the ledger writes it, but for the arguments, which are a list."""
    return (
        isinstance(payload, list)
        and len(payload) == 3
        and isinstance(payload[0], list)
        and payload[1:] == [_NO_KEYWORDS, _NO_NEXT_STEPS]
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()
