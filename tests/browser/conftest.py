"""A monitor under load and a browser, once for all tests of this folder; skipped where there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM, DRIVER, Browser, a_browser
from monitors import MonitorProcess, a_monitor
from workers import a_worker, wait_until

from promptmill import Client
from promptmill.embedded import EmbeddedBroker


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """URL of a broker of this module's own."""
    with EmbeddedBroker(appendfsync="no") as broker:
        yield broker.url


@pytest.fixture(scope="module")
def monitor(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitorProcess]:
    """A monitor, and a slow worker that runs two prompts at once."""
    folder = tmp_path_factory.mktemp("monitor")
    options = ("--echo-tokens-per-s", "50", "--max-batch", "4", "--beat-s", "0.5", "--worker-name", "gpu-one")
    with a_worker(broker, folder / "log", *options), a_monitor(broker, folder) as monitor:
        wait_until(monitor.workers, "the monitor knows the worker")
        yield monitor


@pytest.fixture(scope="module")
def client(broker: str) -> Iterator[Client]:
    """A client of the same broker."""
    with Client(broker, model="echo") as client:
        yield client


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser that nobody has used yet."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium chromium-driver)")
    with a_browser(tmp_path) as browser:
        yield browser
