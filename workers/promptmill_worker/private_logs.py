"""Keeps prompts out of Celery's own log.

A plain ``promptmill.generate`` call carries its prompt in the message, and Celery quotes whole messages where it
can't make sense of them, and all of them at level DEBUG.
"""

from __future__ import annotations

import logging

from celery.worker.consumer import consumer

__all__ = ["hide_messages"]

#: What Celery says, and what is left of it; the first of its values is an exception or the name of a task.
_QUOTING = {
    consumer.UNKNOWN_FORMAT: "deleted a message that is no task",
    consumer.UNKNOWN_TASK_ERROR: "deleted a call of an unknown task: {value}",
    consumer.INVALID_TASK_ERROR: "deleted a call that is malformed ({kind})",
    consumer.MESSAGE_DECODE_ERROR: "deleted a call that can't be decoded ({kind})",
    "TaskPool: Apply %s (args:%s kwargs:%s)": "a message goes to a thread",
}


def hide_messages() -> None:
    """Has Celery name what it can't make sense of, and not quote it."""
    for name in (consumer.__name__, "celery.pool"):
        logging.getLogger(name).addFilter(_without_message)


def _without_message(record: logging.LogRecord) -> bool:
    said = _QUOTING.get(str(record.msg))
    if said is not None:
        value = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        record.msg, record.args = said.format(value=value, kind=type(value).__name__), ()
        record.exc_info = None
    return True
