"""Whether the broker may throw records away when its memory is full."""

from __future__ import annotations

import logging

import redis

__all__ = ["warn_of_eviction"]

log = logging.getLogger(__name__)


def warn_of_eviction(client: redis.Redis) -> None:
    """Logs a warning if the broker has a ``maxmemory``, and a policy that evicts keys there."""
    try:
        memory = client.info("memory")  # not CONFIG GET, which our access rules don't allow
    except redis.RedisError:  # it has just gone; that is noticed, and told, elsewhere
        return
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        log.warning(
            "the broker's maxmemory-policy is %s: when full it may throw prompts and answers away; set noeviction",
            policy,
        )
