"""What Celery's events and ``inspect`` tell of a message: numbers in place of prompts and answers."""

from __future__ import annotations

import threading
from typing import Any

from celery.worker.request import Request

from promptmill.names import RUN_TASK, SHOWN_MARK
from promptmill_worker.tally import Tally

__all__ = ["PrivateRequest", "note_outcome"]

NOT_SHOWN = "(not shown)"
#: Others had claimed or answered it all.
NOTHING_DONE = "nothing was left to do"


class _Outcome(threading.local):
    """What the message in work on this thread has come to; None: nothing."""

    tally: Tally | None = None
    task: str = ""


_outcome = _Outcome()


def note_outcome(tally: Tally, task: str) -> None:
    """Says what the message in work on this thread has come to, and of which task, for the event of its end."""
    _outcome.tally, _outcome.task = tally, task


class PrivateRequest(Request):  # type: ignore[misc]
    """A message that shows nothing of its prompt or its answer.

    ``model``, the served name, is set on the class by ``tasks.register_tasks``, since Celery makes the instance.
    """

    model: str

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The caller's Celery wrote the prompt into these, for events, Flower and `inspect active`.
        self._argsrepr = NOT_SHOWN
        self._kwargsrepr = self._shown(int(self.args[3]) if self._type == RUN_TASK else 1)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - Celery asks for both
        """What ``inspect active`` shows."""
        shown: dict[str, Any] = super().info(safe=True)
        return {**shown, SHOWN_MARK: True}

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Called in the pool's thread, before the task runs there."""
        _outcome.tally = None
        super().on_accepted(pid, time_accepted)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's own name for it
        """Sends an event of this task; any thread of the pool may call it."""
        if type == "task-started":
            fields |= {"args": self._argsrepr, "kwargs": self._kwargsrepr}
        elif type == "task-succeeded":
            fields |= self._what_came_of_it()
        elif type == "task-failed":
            # An exception's text may quote whatever it was raised about.
            fields |= {"exception": str(fields.get("exception", "")).partition("(")[0], "traceback": None}
        super().send_event(type, **fields, **{SHOWN_MARK: True})

    def _shown(self, prompts: int) -> str:
        # As Python writes a dictionary: Flower's search takes such text apart.
        return str({"model": self.model, "prompts": prompts})

    def _what_came_of_it(self) -> dict[str, str]:
        if _outcome.tally is None:
            return {"result": NOTHING_DONE}
        another = "" if _outcome.task == self.id else f", of task {_outcome.task}"
        # Short: Flower's table cuts it off at fifty characters.
        return {"kwargs": self._shown(_outcome.tally.prompts), "result": f"{_outcome.tally}{another}"}
