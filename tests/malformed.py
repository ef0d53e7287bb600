"""Malformed messages: mutations of good ones, the same for the same seed."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from promptmill.ledger.scripts import POINTER_TEMPLATE

#: In every message, where a prompt may be.
MARKER = "secret-marker"

QUEUE = "promptmill.echo"


def plain_call(task: str = "promptmill.generate", **options: Any) -> dict[str, Any]:
    """A good call as Celery sends it and kombu stores it."""
    task_id = str(uuid.uuid4())
    body = [
        [],
        {"prompt": f"{MARKER} {task_id}", "max_tokens": 3},
        {"callbacks": None, "errbacks": None, "chain": None},
    ]
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": MARKER,
        "kwargsrepr": MARKER,
        "ignore_result": False,
        "stamps": {},
        "stamped_headers": None,
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": str(uuid.uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    envelope = {"content-encoding": "utf-8", "content-type": "application/json"}
    return {"body": encoded(json.dumps(body)), **envelope, "headers": headers, "properties": properties, **options}


def pointer() -> dict[str, Any]:
    """A good message of the ledger, to a record that is gone."""
    values = {"id": uuid.uuid4().hex, "tag": uuid.uuid4().hex, "queue": QUEUE, "priority": "6", "lane": f"{QUEUE}|6"}
    text = POINTER_TEMPLATE.replace("@score@", "1").replace("@count@", "1")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return json.loads(text)


def encoded(body: str | bytes) -> str:
    """A body as kombu stores it with the body encoding base64."""
    return base64.b64encode(body.encode() if isinstance(body, str) else body).decode()


class CreatesFile:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._path,)


def pickled(path: Path) -> dict[str, Any]:
    """A call whose body creates ``path`` when it is unpickled."""
    body = encoded(pickle.dumps([[CreatesFile(path)], {}, {}]))
    return plain_call(body=body, **{"content-type": "application/x-python-serialize", "content-encoding": "binary"})


def yaml(path: Path) -> dict[str, Any]:
    """A call whose body creates ``path`` when it is read by an unsafe YAML reader."""
    body = encoded(f"[[!!python/object/apply:os.mkdir [{path}]], {{}}, {{}}]")
    return plain_call(body=body, **{"content-type": "application/x-yaml"})


def nested(levels: int) -> Any:
    """Lists in lists."""
    value: Any = MARKER
    for _ in range(levels):
        value = [value]
    return value


JUNK: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda _: 0,
    lambda _: -1,
    lambda _: 10**30,
    lambda _: 1.5e300,
    lambda _: "",
    lambda _: MARKER,
    lambda _: MARKER * 200,
    lambda _: f"{MARKER}\ud800",
    lambda _: f"{MARKER}\n\0",
    lambda _: [],
    lambda _: [MARKER],
    lambda _: [[], {}, None],
    lambda _: {},
    lambda _: {MARKER: MARKER},
    lambda _: {"task": MARKER},
    lambda _: [{"task": MARKER, "args": 5, "kwargs": [], "options": MARKER}],
    lambda _: [{"task": "no.such.task", "args": [MARKER], "kwargs": {}, "options": {"queue": 5}}],
    lambda _: {"__type__": "datetime", "__value__": MARKER},
    lambda _: {"__type__": "uuid", "__value__": {"hex": 5}},
    lambda _: {"__type__": MARKER, "__value__": MARKER},
    lambda _: {"__type__": "decimal", "__value__": MARKER},
    lambda _: {"__type__": "base64", "__value__": "AAAA"},
    lambda rng: nested(rng.choice([90, 200, 400])),
    lambda rng: rng.choice(["never", "0001-01-01T00:00:00", "2026-13-45", "-1"]),
    lambda rng: rng.choice(["celery.map", "celery.group", "promptmill.run", "promptmill.generate", "no.such.task"]),
    lambda rng: rng.choice(["utf-8", "utf-16", "rot13", "hex", "zlib", "no-such-codec", "binary", "base64"]),
    lambda rng: rng.choice(["application/x-yaml", "application/x-msgpack", "application/data", "text/plain"]),
    lambda rng: rng.choice(["application/x-gzip", "application/x-bz2", "zlib"]),
    lambda rng: [rng.choice([None, MARKER, -5, []]) for _ in range(rng.randrange(4))],
]

#: Fields that Celery and kombu know and a message need not have.
RARE_HEADERS = ["compression", "redelivered", "stamps", "stamped_headers", "group_index", "delivery_info", "chord"]


def malformed(count: int, seed: int) -> Iterator[bytes]:
    """``count`` messages as they lie in a list, nearly all of them malformed."""
    rng = random.Random(seed)
    sent: list[bytes] = []
    for _ in range(count):
        message = rng.choice(sent) if sent and rng.random() < 0.03 else _message(rng)
        sent = [*sent[-50:], message]
        yield message


def _message(rng: random.Random) -> bytes:
    good = plain_call() if rng.random() < 0.6 else pointer()
    kind = rng.random()
    if kind < 0.2:
        return _torn(rng, json.dumps(good).encode())
    if kind < 0.25:
        return json.dumps(rng.choice(JUNK)(rng)).encode()
    if kind < 0.6:
        return json.dumps(_mutated(rng, good)).encode()
    encoding = good["properties"].get("body_encoding")
    text = base64.b64decode(good["body"]).decode() if encoding == "base64" else good["body"]
    body = _torn(rng, text.encode()) if kind < 0.7 else json.dumps(_mutated(rng, json.loads(text))).encode()
    good["body"], good["properties"]["body_encoding"] = encoded(body), "base64"
    return json.dumps(good).encode()


def _torn(rng: random.Random, text: bytes) -> bytes:
    """Bytes that are no longer what they were."""
    at = rng.randrange(len(text))
    return rng.choice(
        [
            text[:at],
            text[at:],
            text[:at] + rng.randbytes(3) + text[at + 3 :],
            rng.randbytes(rng.randrange(300)),
            MARKER.encode(),
            b"[" * rng.choice([10, 1000, 100_000]),
            b"[" * 900 + b"]" * 900,
            b'{"a":' * 1000,
            b"9" * 5000,
            b"NaN",
            b"",
        ]
    )


def _mutated(rng: random.Random, good: Any) -> Any:
    """A copy with something replaced, removed or added, at any level."""
    changed = copy.deepcopy(good)
    for holder, key in rng.sample(list(_places(changed)), rng.choice([1, 1, 1, 2, 4])):
        what = rng.random()
        if what < 0.7:
            holder[key] = rng.choice(JUNK)(rng)
        elif isinstance(holder, dict):
            if what < 0.9:
                holder.pop(key, None)
            else:
                holder[rng.choice([*RARE_HEADERS, MARKER])] = rng.choice(JUNK)(rng)
        else:
            holder.append(rng.choice(JUNK)(rng))
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _places(child)
