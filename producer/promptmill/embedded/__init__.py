"""A broker of one's own: a Valkey server that belongs to this process and ends with it."""

from promptmill.embedded.broker import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
