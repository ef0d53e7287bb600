"""Celery's events on their way into Flower: prompts, answers and what errors quote stay outside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.events import EventReceiver
from flower.events import Events

from promptmill.names import SHOWN_MARK

__all__ = ["NOT_SHOWN", "PrivateEvents", "without_private"]

log = logging.getLogger(__name__)

#: What Flower may know of any task, also of those that share the broker with ours: an application's own tasks get our
#: answers as their arguments.
_KNOWN = {
    *("type", "uuid", "name", "hostname", "pid", "timestamp", "local_received", "utcoffset", "clock"),
    *("root_id", "parent_id", "retries", "eta", "expires", "queue", "exchange", "routing_key"),
    *("runtime", "terminated", "signum", "expired", "requeue"),
}
#: What it may know besides if our worker wrote it.
_WRITTEN_BY_US = ("args", "kwargs", "result")

NOT_SHOWN = "(not shown)"

#: How long to wait before the broker is tried again, in seconds.
RETRY_S = 2.0


def without_private(event: dict[str, Any]) -> dict[str, Any]:
    """The event, with nothing in it that may hold a prompt or an answer; those of workers are left as they are."""
    if not event["type"].startswith("task-"):
        return event
    shown = {name: value for name, value in event.items() if name in _KNOWN}
    if event.get(SHOWN_MARK) is True:
        shown |= {name: event[name] for name in _WRITTEN_BY_US if name in event}
    elif event["type"] == "task-received":
        shown |= {"args": NOT_SHOWN, "kwargs": NOT_SHOWN}
    if event.get("exception"):
        # Its class; its text may quote whatever it was raised about.
        shown["exception"] = str(event["exception"]).partition("(")[0]
    return shown


class PrivateEvents(Events):  # type: ignore[misc]
    """Flower's thread that receives events, and what it has made of them.

    Args:
        meet: Called on Flower's loop with a worker's name each time it says that it lives.
        options: Flower's own.
    """

    def __init__(self, *arguments: Any, meet: Callable[[str], object], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._meet = meet
        #: Whether there is anything that was not saved yet.
        self._has_news = False

    def run(self) -> None:
        """Receives events until the process ends. Flower's own way waits ever longer for a broker that was away."""
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:  # whatever it was: a monitor that has stopped to look would not show it
                log.warning("no events from the broker (%s): trying again", type(error).__name__)
            time.sleep(RETRY_S)

    def on_event(self, event: dict[str, Any]) -> None:
        """Called in this thread for each event."""
        super().on_event(without_private(event))
        self._has_news |= event["type"].startswith("task-")
        if event["type"] in ("worker-online", "worker-heartbeat"):
            self.io_loop.add_callback(self._meet, event["hostname"])

    def save_state(self) -> None:
        """Called on Flower's loop every few seconds, which it holds up: half a second for ten thousand tasks."""
        if self._has_news:
            self._has_news = False
            super().save_state()
