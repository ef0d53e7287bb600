"""What tests need to know about brokers."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

from redis import Redis

#: Ports of each process that runs tests; systems take those of outgoing connections from above them.
PORTS_EACH = 2000
_FIRST_PORT = 10_000 + PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 11)
_PORTS = itertools.cycle(random.sample(range(_FIRST_PORT, _FIRST_PORT + PORTS_EACH), PORTS_EACH))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now, and that nobody else is given soon."""
    for port in itertools.islice(_PORTS, PORTS_EACH):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {_FIRST_PORT} on is free")


def client_of(url: str) -> Redis:
    """A client of the broker at ``url``; kombu's spelling of a unix socket is not redis-py's."""
    return Redis.from_url(url.replace("redis+socket://", "unix://").replace("virtual_host=", "db="))
