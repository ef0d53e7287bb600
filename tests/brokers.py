"""What tests need to know about brokers."""

from __future__ import annotations

import socket

from redis import Redis


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def client_of(url: str) -> Redis:
    """A client of the broker at ``url``; kombu's spelling of a unix socket is not redis-py's."""
    return Redis.from_url(url.replace("redis+socket://", "unix://").replace("virtual_host=", "db="))
