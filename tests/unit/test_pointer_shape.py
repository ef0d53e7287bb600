"""Only what the ledger itself writes is spared the checks of messages."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from promptmill.ledger.scripts import POINTER_TEMPLATE
from promptmill_worker.pointer_shape import is_call_of_pointer, is_pointer


def a_pointer() -> dict[str, Any]:
    filled = POINTER_TEMPLATE.replace("@priority@", "5")
    values = {"id": "a1", "tag": "b2", "queue": "promptmill.echo", "lane": "promptmill.echo|5", "score": "7"}
    for name, value in {**values, "count": "1"}.items():
        filled = filled.replace(f"@{name}@", value)
    return json.loads(filled)


def test_a_message_of_the_ledger_is_known_by_its_shape() -> None:
    message = a_pointer()
    assert is_pointer(message)
    assert is_call_of_pointer(json.loads(message["body"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message.update(more=1),
        lambda message: message.update(body=["x"]),
        lambda message: message.pop("body"),
        lambda message: message["headers"].update(root_id="another"),
        lambda message: message["headers"].update(stamps={}),
        lambda message: message["headers"].update(retries=1),
        lambda message: message["headers"].update(id="line\nbreak", root_id="line\nbreak"),
        lambda message: message["headers"].update(task="promptmill.generate"),
        lambda message: message["headers"].update(timelimit=[1, 1]),
        lambda message: message["properties"].update(delivery_tag=["a"]),
        lambda message: message["properties"].update(priority="5"),
        lambda message: message["properties"].update(priority=True),
        lambda message: message["properties"].update(priority=10),
        lambda message: message["properties"].update(reply_to="me"),
        lambda message: message["properties"]["delivery_info"].update(exchange="x"),
        lambda message: message.update(properties=[]),
    ],
)
def test_a_message_that_differs_anywhere_is_checked_like_a_strangers(
    change: Callable[[dict[str, Any]], object],
) -> None:
    message = copy.deepcopy(a_pointer())
    change(message)
    assert not is_pointer(message)


@pytest.mark.parametrize("payload", [None, [], [[], {}], [{}, {}, {}], [[], {"a": 1}, {}], [[], {}, {"chord": {}}]])
def test_so_is_a_body(payload: Any) -> None:
    assert not is_call_of_pointer(payload)
