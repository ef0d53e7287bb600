"""Tests of fastapi_app.py without a model: pip install 'promptmill[embedded]' pytest httpx2; pytest"""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from fastapi_app import app

from promptmill import EngineError
from promptmill.testing import StubWorker

pytest_plugins = ["promptmill.testing.fixtures"]


@pytest.fixture
def site(promptmill_worker: StubWorker) -> Iterator[TestClient]:
    with TestClient(app) as site:  # its AsyncClient() finds the stub worker
        yield site


def ask(site: TestClient, text: str) -> str:
    return f"/answers/{site.post('/answers', json={'text': text, 'max_tokens': 9}).json()['id']}"


def test_a_question_is_answered(site: TestClient, promptmill_worker: StubWorker) -> None:
    promptmill_worker.answers = {"Why is the sky blue?": "Rayleigh."}
    path = ask(site, "Why is the sky blue?")
    assert site.get(f"{path}/events").text.endswith('data: "Rayleigh."\n\nevent: done\ndata: ""\n\n')
    assert site.get(path).json() == {"status": "succeeded", "text": "Rayleigh."}
    [request] = promptmill_worker.requests
    assert request.sampling.max_tokens == 9


def test_a_failure_is_told_without_its_details(site: TestClient, promptmill_worker: StubWorker) -> None:
    promptmill_worker.answers = EngineError("out of memory on gpu-7")
    path = ask(site, "Why?")
    assert "event: failed" in site.get(f"{path}/events").text
    response = site.get(path)
    assert response.status_code == 502
    assert "gpu-7" not in response.text
