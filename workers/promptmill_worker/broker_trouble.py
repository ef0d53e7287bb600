"""Errors that say nothing of a message, but of the way to the broker: the same may succeed later."""

from __future__ import annotations

import redis

__all__ = ["BROKER_TROUBLE"]

#: What the network and the broker do to us.
BROKER_TROUBLE = (OSError, redis.RedisError)
