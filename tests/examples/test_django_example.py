from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest
from brokers import free_port
from sites import EXAMPLES, a_site, settled
from workers import a_process, wait_until

from promptmill import EngineError
from promptmill.testing import StubWorker

PROJECT = EXAMPLES / "django_site"

#: The client has a thread and connections before gunicorn forks.
GUNICORN = """
def when_ready(server):
    from stories.llm import llm
    llm().generate("before the fork")
"""


def environment(worker: StubWorker) -> dict[str, str]:
    return {**worker.environment, "CELERY_BROKER_URL": worker.broker_url, "DJANGO_SECRET_KEY": "a-tests-key"}


@pytest.fixture(scope="module")
def site(session_worker: StubWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """The example under gunicorn: loaded once, then forked."""
    folder, port = tmp_path_factory.mktemp("django"), free_port()
    (folder / "gunicorn.conf.py").write_text(GUNICORN)
    options = ["--preload", "--workers", "2", "--threads", "2", "--bind", f"127.0.0.1:{port}", "--chdir", str(PROJECT)]
    command = [sys.executable, "-m", "gunicorn", "-c", str(folder / "gunicorn.conf.py"), *options, "config.wsgi"]
    with a_site(command, port, folder / "log", **environment(session_worker)) as site:
        yield site


@pytest.fixture(scope="module")
def celery_worker(session_worker: StubWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The site's own Celery worker, with forked children."""
    options = ["--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO"]
    command = [sys.executable, "-m", "celery", "--workdir", str(PROJECT), "-A", "config", "worker", *options]
    log = tmp_path_factory.mktemp("celery") / "log"
    with a_process(command, log, **environment(session_worker)) as process:
        wait_until(lambda: " ready." in process.log, "the site's own worker is ready", timeout_s=60)
        yield


def test_one_request_submits_and_others_poll_in_any_forked_process(site: httpx2.Client, worker: StubWorker) -> None:
    worker.answers = lambda request: f"{request.prompt} there was a mill."
    beginnings = [f"Story {number}:" for number in range(20)]
    ids = [site.post("/stories", data={"beginning": beginning}).json()["id"] for beginning in beginnings]
    texts = [settled(site, f"/stories/{task_id}").json()["text"] for task_id in ids]
    assert texts == [f"{beginning} there was a mill." for beginning in beginnings]


def test_errors_are_statuses(site: httpx2.Client, worker: StubWorker) -> None:
    assert site.get("/stories/no-such-task").status_code == 404
    response = site.post("/stories", data={"beginning": ""})
    assert (response.status_code, response.json()["error"]) == (422, "InvalidRequestError")
    worker.answers = EngineError("secret-marker")
    response = settled(site, f"/stories/{site.post('/stories', data={'beginning': 'a'}).json()['id']}")
    assert response.status_code == 502
    assert "secret-marker" not in response.text


@pytest.mark.usefixtures("celery_worker")
def test_a_celery_task_of_the_sites_own_asks_promptmill(site: httpx2.Client, worker: StubWorker) -> None:
    worker.answers = "Short."
    task_id = site.post("/summaries", data={"text": "a long text"}).json()["id"]
    assert settled(site, f"/summaries/{task_id}").json() == {"status": "SUCCESS", "text": "Short."}
    [request] = worker.requests
    assert request.messages is not None
    assert request.messages[0].content == "Summarise in one sentence: a long text"


PROGRAM = """
import celery, config, django
django.setup()
from stories.llm import llm
from stories.tasks import summarise
import promptmill, promptmill.app, promptmill.testing
assert llm().generate("a").text == "a"
promptmill.app.create_app(llm().settings)
assert celery.current_app.main == summarise.app.main == "config", celery.current_app
assert celery.current_app.conf.task_default_queue == "celery"
"""


def test_the_sites_celery_stays_the_current_app(worker: StubWorker) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environment(worker)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
