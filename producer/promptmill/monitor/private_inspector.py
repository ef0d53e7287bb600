"""What workers answer to ``inspect`` on its way into Flower: prompts and passwords stay outside."""

from __future__ import annotations

import re
import time
from typing import Any

from flower.inspector import Inspector

from promptmill.monitor.private_events import NOT_SHOWN
from promptmill.names import SHOWN_MARK

__all__ = ["PrivateInspector"]

#: How often a living worker is asked, in seconds.
ASK_EVERY_S = 30.0

#: The lists of tasks among the answers.
_TASKS = ("scheduled", "active", "reserved")

#: What a worker may tell of its way to the broker; the rest of that holds passwords, and whole URLs.
_KNOWN_OF_BROKER = ("transport", "port", "userid", "virtual_host", "connect_timeout", "heartbeat", "login_method")

_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")


class PrivateInspector(Inspector):  # type: ignore[misc]
    """Flower's memory of what workers say of themselves."""

    def meet(self, worker: str) -> None:
        """Asks a worker that lives, if it was not asked lately; Flower itself asks those that it finds at its start."""
        known = self.workers.get(worker, {})
        if "stats" not in known or "active_queues" not in known or time.time() > known["timestamp"] + ASK_EVERY_S:
            self.inspect(worker)

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        if method in _TASKS:
            response = [without_arguments(task) for task in response]
        elif method == "stats":
            response = without_way_to_broker(response)
        super()._on_update(workername, method, without_logins(response))


def without_arguments(task: dict[str, Any]) -> dict[str, Any]:
    """A task as ``inspect`` lists it, with no arguments but those that our worker wrote."""
    if isinstance(task.get("request"), dict):  # a scheduled one
        return {**task, "request": without_arguments(task["request"])}
    if task.get(SHOWN_MARK) is True:
        return {name: value for name, value in task.items() if name != SHOWN_MARK}
    return {name: NOT_SHOWN if name in ("args", "kwargs") else value for name, value in task.items()}


def without_way_to_broker(stats: dict[str, Any]) -> dict[str, Any]:
    """A worker's statistics, with the host of its broker and not more."""
    if isinstance(stats.get("consumer"), dict):
        return {**stats, "consumer": without_way_to_broker(stats["consumer"])}
    broker = stats.get("broker")
    if not isinstance(broker, dict):
        return stats
    known = {name: broker[name] for name in _KNOWN_OF_BROKER if name in broker}
    # kombu's host of a socket is the URL but for its beginning.
    host = str(broker.get("hostname") or "").rpartition("@")[2]
    return {**stats, "broker": {"hostname": host, **known}}


def without_logins(value: Any) -> Any:
    """The same, with no user and password in any URL."""
    if isinstance(value, dict):
        return {name: without_logins(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_logins(item) for item in value]
    return _LOGIN_IN_URL.sub("", value) if isinstance(value, str) else value
