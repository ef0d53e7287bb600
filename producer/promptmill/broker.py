"""The way to the broker, for redis-py and for Celery."""

from __future__ import annotations

import ssl
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from promptmill.broker_address import BrokerAddress
from promptmill.settings import Settings

__all__ = ["CONNECTION_ERRORS", "connect", "connect_async", "sentinel_options", "tls_options"]

#: What redis-py raises when a command may succeed later, on another connection.
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError)

#: A command that takes longer than this has met a dead connection.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0


def connect(settings: Settings, **options: Any) -> redis.Redis:
    """A redis-py client of the broker; connections are made when they are needed.

    Args:
        settings: Names the broker.
        options: Options of ``redis.Redis`` over ours, such as ``socket_timeout``.
    """
    # Callers retry as a whole, with a limit in seconds; a retry of one command below that would hide it.
    client: redis.Redis = _client(redis.Redis, Sentinel, settings, {"retry": Retry(NoBackoff(), 0), **options})
    return client


def connect_async(settings: Settings, **options: Any) -> redis.asyncio.Redis:
    """The same on asyncio's loop; each connection belongs to the loop on which it is made."""
    client: redis.asyncio.Redis = _client(
        redis.asyncio.Redis, AsyncSentinel, settings, {"retry": AsyncRetry(NoBackoff(), 0), **options}
    )
    return client


def _client(single: Any, sentinel: Any, settings: Settings, options: dict[str, Any]) -> Any:
    address = BrokerAddress.parse(settings.broker_url)
    common: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": 30,
        # One for each thread that talks to the broker at once; redis-py's own limit of 100 would make the others wait.
        "max_connections": 10_000,
        **options,
    }
    if address.path is not None:
        return single(unix_socket_path=address.path, **common)
    common["socket_connect_timeout"] = CONNECT_TIMEOUT_S
    common["socket_keepalive"] = True
    if address.scheme == "sentinel":
        sentinels = sentinel(
            list(address.hosts), sentinel_kwargs={**sentinel_options(settings), "retry": common["retry"]}, **common
        )
        return sentinels.master_for(settings.sentinel_master)
    [(host, port)] = address.hosts
    return single(host=host, port=port, ssl=address.scheme == "rediss", **common, **tls_options(settings))


def tls_options(settings: Settings) -> dict[str, Any]:
    """How redis-py, under kombu and Celery too, checks the broker's certificate and shows ours; empty without TLS."""
    if not settings.broker_url.startswith("rediss://"):
        return {}
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    for name, path in {
        "ssl_ca_certs": settings.tls_ca_file,
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file,
    }.items():
        if path is not None:
            options[name] = str(path)
    return options


def sentinel_options(settings: Settings) -> dict[str, Any]:
    """How to connect to the sentinels themselves. They get no password but their own."""
    return {
        "password": settings.sentinel_password,
        "socket_timeout": CONNECT_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),  # the next sentinel may know better
    }
