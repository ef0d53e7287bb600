"""The broker's URL, for Celery and for redis-py, and what to call it in a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from promptmill.errors import BrokerUnavailableError
from promptmill.settings import Settings

__all__ = ["CONNECTION_ERRORS", "BrokerAddress", "broker_errors", "connect"]

#: What redis-py raises when a command may succeed later, on another connection.
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError)

#: A command that takes longer than this has met a dead connection.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class BrokerAddress:
    """A broker URL taken apart. ``str()`` of it shows no password."""

    scheme: str
    #: (host, port) pairs: one, or one for each sentinel; empty for a socket.
    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None = field(repr=False)
    database: int
    #: Path of a unix socket.
    path: str | None

    @classmethod
    def parse(cls, url: str) -> BrokerAddress:
        """Takes ``url`` apart; of several sentinels the first carries password and database."""
        parts = [urlsplit(part) for part in url.split(";")]
        first = parts[0]
        default_port = 26379 if first.scheme == "sentinel" else 6379
        is_socket = first.scheme == "redis+socket"
        query = parse_qs(first.query)
        database = (query.get("virtual_host") or query.get("db") or ["0"])[0] if is_socket else first.path.strip("/")
        return cls(
            scheme=first.scheme,
            hosts=()
            if is_socket
            else tuple((part.hostname or "localhost", part.port or default_port) for part in parts),
            username=unquote(first.username) if first.username else None,
            password=unquote(first.password) if first.password else None,
            database=int(database or 0),
            path=unquote(first.path) if is_socket else None,
        )

    def __str__(self) -> str:
        if self.path is not None:
            return f"the socket {self.path}"
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def connect(settings: Settings, **options: Any) -> redis.Redis:
    """A redis-py client of the broker; connections are made when they are needed.

    Args:
        settings: Names the broker.
        options: Options of ``redis.Redis`` over ours, such as ``socket_timeout``.
    """
    address = BrokerAddress.parse(settings.broker_url)
    common: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": 30,
        # Callers retry as a whole, with a limit in seconds; a retry of one command below that would hide it.
        "retry": Retry(NoBackoff(), 0),
        **options,
    }
    if address.path is not None:
        return redis.Redis(unix_socket_path=address.path, **common)
    common["socket_connect_timeout"] = CONNECT_TIMEOUT_S
    common["socket_keepalive"] = True
    if address.scheme == "sentinel":
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            list(address.hosts), sentinel_kwargs={"password": address.password}, **common
        )
        client: redis.Redis = sentinel.master_for(settings.sentinel_master)
        return client
    [(host, port)] = address.hosts
    return redis.Redis(host=host, port=port, ssl=address.scheme == "rediss", **common)


@contextmanager
def broker_errors(settings: Settings) -> Iterator[None]:
    """Turns redis-py's errors into BrokerUnavailableError, naming host and port and never the password."""
    try:
        yield
    except redis.AuthenticationError:
        raise BrokerUnavailableError(
            f"the broker at {_shown(settings)} refuses the user or the password: check PROMPTMILL_BROKER_URL"
        ) from None
    except redis.exceptions.NoPermissionError as error:
        raise BrokerUnavailableError(
            f"the broker at {_shown(settings)} denies a command ({str(error).split(',')[0]}): check the ACL"
        ) from None
    except (*CONNECTION_ERRORS, redis.exceptions.RedisError) as error:
        raise BrokerUnavailableError(
            f"the broker at {_shown(settings)} does not answer ({type(error).__name__}): "
            "is it running, and does PROMPTMILL_BROKER_URL name it?"
        ) from None


def _shown(settings: Settings) -> str:
    return str(BrokerAddress.parse(settings.broker_url))
