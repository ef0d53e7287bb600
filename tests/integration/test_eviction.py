"""A broker that may throw records away: a worker says so when it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import client_of
from redis import Redis
from workers import a_worker

from promptmill_worker.eviction import warn_of_eviction


@pytest.fixture
def broker(any_broker_url: str) -> Iterator[Redis]:
    with client_of(any_broker_url) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def limit(broker: Redis, policy: str, maxmemory: int = 2**30) -> None:
    broker.config_set("maxmemory-policy", policy)
    broker.config_set("maxmemory", maxmemory)


def test_a_worker_warns_once_of_a_broker_that_evicts(any_broker_url: str, broker: Redis, tmp_path: Path) -> None:
    limit(broker, "allkeys-lru")
    with a_worker(any_broker_url, tmp_path / "log") as worker:
        assert worker.log.count("maxmemory-policy is allkeys-lru") == 1
        assert "set noeviction" in worker.log


@pytest.mark.parametrize(
    ("policy", "maxmemory", "warnings"),
    [("volatile-ttl", 2**30, 1), ("noeviction", 2**30, 0), ("allkeys-lru", 0, 0)],
)
def test_only_a_limit_with_a_policy_that_evicts_is_warned_of(
    broker: Redis, caplog: pytest.LogCaptureFixture, policy: str, maxmemory: int, warnings: int
) -> None:
    limit(broker, policy, maxmemory)
    warn_of_eviction(broker)
    assert len(caplog.records) == warnings


def test_a_broker_that_has_just_gone_is_not_this_ones_to_tell_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_eviction(Redis(host="127.0.0.1", port=1))
    assert not caplog.records
