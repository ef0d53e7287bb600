"""What the examples run against: a stub worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from promptmill.testing import StubWorker


@pytest.fixture(scope="session")
def session_worker() -> Iterator[StubWorker]:
    """Serves smollm2, as the examples want it."""
    with StubWorker(model="smollm2") as worker:
        yield worker


@pytest.fixture
def worker(session_worker: StubWorker) -> Iterator[StubWorker]:
    """The same, for one test."""
    session_worker.reset()
    yield session_worker
    session_worker.reset()
