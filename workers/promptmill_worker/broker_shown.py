"""What a worker tells of its way to the broker when Celery's ``inspect stats`` asks: no password."""

from __future__ import annotations

from typing import Any

__all__ = ["broker_shown"]

_SHOWN = ("transport", "port", "userid", "virtual_host", "connect_timeout", "heartbeat", "login_method")


def broker_shown(connection: Any) -> dict[str, Any]:
    """Facts of a kombu connection; Celery tells all but the password itself.

    Left out are the options, where the sentinels' password is, and what can't be put into JSON; the other hosts, which
    are whole URLs; and a login in front of the host, which kombu leaves there if that is a socket.
    """
    facts: dict[str, Any] = connection.info()
    host = str(facts.get("hostname") or "").rpartition("@")[2].partition("?")[0]
    return {"hostname": host, **{name: facts[name] for name in _SHOWN if name in facts}}
