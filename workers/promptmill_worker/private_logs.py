"""Keeps prompts out of Celery's own log.

A plain ``promptmill.generate`` call carries its prompt in the message. Celery quotes messages of unknown tasks, and all
of them at level DEBUG; and the text of an exception may quote whatever it was raised about.
"""

from __future__ import annotations

import logging
import traceback

from celery.worker.consumer import consumer

__all__ = ["hide_messages"]


def hide_messages() -> None:
    """Has Celery name what it meets, and not quote it."""
    logging.getLogger(consumer.__name__).addFilter(_without_unknown_tasks)
    logging.getLogger("celery.pool").addFilter(_without_arguments)
    for name in ("celery.app.trace", "celery.app.amqp", "py.warnings"):
        logging.getLogger(name).addFilter(_without_exceptions)


def _without_unknown_tasks(record: logging.LogRecord) -> bool:
    return bool(record.msg != consumer.UNKNOWN_TASK_ERROR)  # message_check tells of them


def _without_arguments(record: logging.LogRecord) -> bool:
    if record.msg == "TaskPool: Apply %s (args:%s kwargs:%s)":
        record.msg, record.args = "a message goes to a thread", ()
    return True


def _without_exceptions(record: logging.LogRecord) -> bool:
    """Leaves where it happened and the type of what happened."""
    if record.exc_info and isinstance(record.args, dict):
        kind, _, trace = record.exc_info
        frames = "".join(traceback.format_tb(trace))
        record.msg = (
            f"task {record.args.get('name')}[{record.args.get('id')}] failed: {kind and kind.__name__}\n{frames}"
        )
        record.args, record.exc_info, record.exc_text = (), None, None
    elif isinstance(record.args, tuple):
        record.args = tuple(type(value).__name__ if isinstance(value, Exception) else value for value in record.args)
    if "Exception raised outside body" in record.getMessage():
        record.msg, record.args = "Celery failed to call the tasks behind a task", ()
    return True
