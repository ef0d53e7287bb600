"""The ledger's Lua scripts and the pointer that they publish."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from promptmill.names import RUN_TASK

__all__ = ["POINTER_TEMPLATE", "Script", "script"]


@dataclass(frozen=True)
class Script:
    """One script, with what all of them share in front."""

    source: str
    sha1: str


@cache
def script(name: str) -> Script:
    """The script ``lua/{name}.lua``, ready to be loaded."""
    folder = files("promptmill.ledger") / "lua"
    source = "".join((folder / f"{part}.lua").read_text() for part in ("prelude", "turns", "loss", name))
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _pointer_template() -> str:
    """The Celery message (protocol 2, as kombu's Redis transport stores it) that says "there is work, here".

    The scripts fill in @id@, @lane@, @score@, @count@, @queue@, @priority@ and @tag@. Publishing it from within the
    script that moves the record is what makes entering, offering again and sweeping one step each.
    """
    body = [
        ["@id@", "@lane@", "@score@", "@count@"],
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    return json.dumps(
        {
            "body": json.dumps(body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": RUN_TASK,
                "id": "@id@",
                "root_id": "@id@",
                "parent_id": None,
                "group": None,
                "shadow": None,
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
                "argsrepr": "@count@ prompts",
                "kwargsrepr": "",
                "origin": "promptmill",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": "@id@",
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "@queue@"},
                "priority": "@priority@",
                "body_encoding": "utf-8",
                "delivery_tag": "@tag@",
            },
        }
    ).replace('"@priority@"', "@priority@")


POINTER_TEMPLATE = _pointer_template()
