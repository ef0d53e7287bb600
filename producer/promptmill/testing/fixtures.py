"""pytest fixtures. In your ``conftest.py``: ``pytest_plugins = ["promptmill.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from promptmill.testing.stub_worker import StubWorker

__all__ = ["promptmill_session_worker", "promptmill_worker"]


@pytest.fixture(scope="session")
def promptmill_session_worker() -> Iterator[StubWorker]:
    """One StubWorker, on an embedded broker, for the whole run; ``Client()`` does not find it by itself."""
    with StubWorker() as worker:
        yield worker


@pytest.fixture
def promptmill_worker(promptmill_session_worker: StubWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubWorker]:
    """The session's StubWorker, reset; an application's ``Client()`` and ``AsyncClient()`` find it."""
    for name, value in promptmill_session_worker.environment.items():
        monkeypatch.setenv(name, value)
    promptmill_session_worker.reset()
    yield promptmill_session_worker
    promptmill_session_worker.reset()
