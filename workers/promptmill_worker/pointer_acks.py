"""Pointers need no acknowledgement: the ledger knows what they point to, and makes a new one if one is lost."""

from __future__ import annotations

from typing import Any

from kombu.message import Message
from kombu.transport import virtual
from kombu.transport.redis import QoS

from promptmill.names import RUN_TASK

__all__ = ["PointerQoS"]


class PointerQoS(QoS):  # type: ignore[misc]
    """kombu's account of what is in our hands, with a copy in the broker of plain calls alone.

    The copy costs two transactions a message, and brings a lost message back after an hour; the ledger does so within
    seconds. Belongs to Celery's loop, as kombu's own does.
    """

    @classmethod
    def take_over(cls, channel: Any) -> None:
        """Makes a channel's account one of these; nothing was consumed on it yet."""
        channel.qos.__class__ = cls  # Celery has set methods on the object itself

    def append(self, message: Message, delivery_tag: str) -> None:
        """Called for each message that is taken."""
        if _is_pointer(message):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Called for each message that was accepted."""
        if _is_pointer(self._delivered.get(delivery_tag)):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Puts a message back that was not worked on."""
        message = self._delivered.get(tag)
        if _is_pointer(message):
            delivery = message.delivery_info
            with self.channel.conn_or_acquire(client) as client:
                route = (delivery["exchange"], delivery["routing_key"])
                self.channel._do_restore_message(message._raw, *route, client, leftmost)
        else:
            super().restore_by_tag(tag, client, leftmost)


def _is_pointer(message: Message | None) -> bool:
    return message is not None and message.headers.get("task") == RUN_TASK
