"""Every message is checked before Celery, or kombu, trips over it.

Celery ends a worker at the first exception that it doesn't expect from a message, and so the next one that gets the
message, and so on. Here a malformed message is refused instead: taken off its queue, never to come back, with a line
in the log that says why and quotes nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import Any

from celery.worker.consumer import Consumer
from kombu.message import Message
from kombu.transport import virtual

from promptmill.names import PRIORITY_STEPS, lane_name
from promptmill_worker.broker_trouble import BROKER_TROUBLE
from promptmill_worker.messages import MalformedMessageError, check_call, check_envelope
from promptmill_worker.pointer_acks import PointerQoS
from promptmill_worker.pointer_shape import is_pointer
from promptmill_worker.refusals import Refusals

__all__ = ["CheckingConsumer"]

log = logging.getLogger(__name__)

#: How often what was refused is told, in seconds.
TELL_EVERY_S = 1.0

#: What may be shown of a task's name: what looks like one.
_TASK_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)


class CheckingConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, which checks what it takes. Belongs to Celery's loop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._refused = Refusals()
        super().__init__(*arguments, **options)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], None]:
        """Called by Celery for each connection, just before it begins to consume."""
        channel = self.task_consumer.channel
        channel.Message = _CheckedMessage
        PointerQoS.take_over(channel)
        channel.handlers["BRPOP"] = partial(self._read, channel.handlers["BRPOP"])
        self.hub.call_repeatedly(TELL_EVERY_S, self._refused.tell)
        lanes = {lane_name(queue, step) for queue in self.app.amqp.queues.consume_from for step in PRIORITY_STEPS}
        return partial(self._handle, super().create_task_handler(*arguments, **options), lanes)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Called by kombu for what it could not decompress."""
        self._refuse(message, MalformedMessageError(f"body: can't be decoded ({type(exc).__name__})"))

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """Called by Celery for what it could not make a request of."""
        self._refuse(message, exc)

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Called by Celery for a task that is none of ours; it tells the caller, and `private_logs` drops its line."""
        super().on_unknown_task(body, message, exc)
        name = message.headers["task"]
        shown = f" ({name})" if _TASK_NAME.fullmatch(name) else ""
        self._refused.add(MalformedMessageError(f"a call of a task that is not ours{shown}"))

    def stop(self) -> None:
        """Called by Celery at the worker's end."""
        self._refused.tell()
        super().stop()

    def _read(self, read: Callable[[], object]) -> None:
        """Takes one message from the broker; a refused one was in nobody's hands but ours."""
        try:
            read()
        except (Empty, *BROKER_TROUBLE):
            raise
        except Exception as error:
            self._refused.add(error)

    def _handle(self, handle: Callable[[Message], None], lanes: set[str], message: Message) -> None:
        try:
            check_call(message, lanes)
            handle(message)
        except BROKER_TROUBLE:
            raise
        except RecursionError as error:  # lists within lists
            self._refuse(message, error)
        except (MemoryError, RuntimeError) as error:  # ours to blame: no memory, or no thread
            log.error("a message can't be worked on now (%s); it goes back", type(error).__name__)
            if not message.acknowledged:
                message.reject_log_error(log, self.connection_errors, requeue=True)
        except Exception as error:
            self._refuse(message, error)

    def _refuse(self, message: Message, error: Exception) -> None:
        self._refused.add(error)
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)


class _CheckedMessage(virtual.Message):  # type: ignore[misc]
    """Raises before kombu has written the message down as in our hands."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        #: Whether it is the ledger's own, which has been checked with that: most messages are.
        self.is_pointer = is_pointer(payload)
        if not self.is_pointer:
            check_envelope(payload)
        super().__init__(payload, channel, **options)
