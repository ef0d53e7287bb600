"""Brokers that may be killed, and bad networks in front of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokers import client_of, free_port
from proxy import Proxy
from redis import Redis
from submitter import Submitter

from promptmill.embedded import EmbeddedBroker


@pytest.fixture(scope="session")
def tcp_broker() -> Iterator[EmbeddedBroker]:
    """One embedded Valkey with a TCP port, for all tests that leave it alive."""
    with EmbeddedBroker(port=free_port(), appendfsync="everysec") as broker:
        yield broker


@pytest.fixture
def tcp_url(tcp_broker: EmbeddedBroker) -> str:
    """URL of that broker, emptied."""
    assert tcp_broker.tcp_url is not None
    with client_of(tcp_broker.url) as client:
        client.flushall()
    return tcp_broker.tcp_url


@pytest.fixture
def broker(tcp_url: str) -> Iterator[Redis]:
    """A direct client of that broker."""
    with client_of(tcp_url) as client:
        yield client


@pytest.fixture
def proxy(tcp_url: str) -> Iterator[Proxy]:
    """A bad network in front of that broker."""
    with Proxy(tcp_url) as proxy:
        yield proxy


@pytest.fixture
def submitter(tcp_url: str) -> Submitter:
    """Submits to that broker, directly."""
    return Submitter(tcp_url)
