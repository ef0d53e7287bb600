"""A broker URL taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit

__all__ = ["BrokerAddress"]


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

    def url_of_each_host(self) -> str:
        """The URL with user, password and database at each sentinel, since kombu goes from one to the next."""
        user = quote(self.username or "", safe="")
        password = f":{quote(self.password, safe='')}" if self.password is not None else ""
        login = f"{user}{password}@" if user or password else ""
        return ";".join(
            f"{self.scheme}://{login}{f'[{host}]' if ':' in host else host}:{port}/{self.database}"
            for host, port in self.hosts
        )

    def __str__(self) -> str:
        if self.path is not None:
            return f"the socket {self.path}"
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)
