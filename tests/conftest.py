"""Brokers for the tests: an embedded Valkey, and Debian's redis-server where it is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import client_of, free_port
from celery.result import AsyncResult

from promptmill.embedded import EmbeddedBroker

# A shell's background ignores Ctrl-C, nohup SIGHUP, and with us the processes whose ending by them we test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests run side by side, and a model on more threads than there are free cores crawls.
os.environ.setdefault("PROMPTMILL_THREADS", "1")
# Nor do two seconds at each worker's start tell a test anything.
os.environ.setdefault("PROMPTMILL_MEASURE_S", "0")

# A result asks for its broker, for 20 s, when it is garbage: in the midst of another test, its own broker long gone.
del AsyncResult.__del__

_IMPORTS_WORKER = re.compile(r"^(from|import) (torch|transformers|promptmill_worker)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch isn't installed, the tests of the worker can't run: the producer's go on alone."""
    if collection_path.suffix != ".py" or importlib.util.find_spec("torch"):
        return None
    return bool(_IMPORTS_WORKER.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests run side by side, a file stays together, and so do all that need the model: it is loaded once."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        group = "model" if "model_path" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """One embedded Valkey for the whole run."""
    with EmbeddedBroker(appendfsync="everysec") as broker:
        yield broker


@pytest.fixture(scope="session")
def debian_redis() -> Iterator[EmbeddedBroker]:
    """One redis-server from the system's packages for the whole run, on a loopback port, with a password."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    with EmbeddedBroker(server=Path(server), port=free_port(), appendfsync="everysec") as broker:
        yield broker


@pytest.fixture
def broker_url(embedded_broker: EmbeddedBroker) -> str:
    """URL of an empty embedded broker."""
    return _emptied(embedded_broker).url


@pytest.fixture(params=["embedded_broker", "debian_redis"])
def any_broker_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty broker: the test runs once on each kind, through a socket and by TCP."""
    broker = _emptied(request.getfixturevalue(request.param))
    return broker.tcp_url or broker.url


def _emptied(broker: EmbeddedBroker) -> EmbeddedBroker:
    with client_of(broker.url) as client:
        client.flushall()
    return broker
