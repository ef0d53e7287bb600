"""Every page and every API route of Flower, searched for a prompt, its answer, and passwords."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
from brokers import client_of
from celery import Celery, chord
from celery.contrib.testing.worker import start_worker
from flower.urls import handlers
from monitors import LOGIN, MonitorProcess, a_monitor
from workers import a_worker, wait_until

from promptmill import Client
from promptmill.names import Names
from promptmill_worker.echo import FAULT_ERROR

QUEUE = "promptmill.echo"
#: In prompts; the echo engine answers with it, too.
MARKER = "marker-of-a-secret"

#: What is asked of each route of Flower: methods and addresses. @task@ and @worker@ are tried with each of them.
ROUTES: dict[str, list[str]] = {
    "/": ["GET /", "GET /?json=1&refresh=1"],
    "/workers": ["GET /workers", "GET /workers?json=1&refresh=1"],
    "/worker/(.+)": ["GET /worker/@worker@?limit=1000"],
    "/task/(.+)": ["GET /task/@task@"],
    "/tasks": ["GET /tasks"],
    "/tasks/datatable": [
        f"{method} /tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&search[value]={text}"
        for method in ("GET", "POST")
        for text in ("", "kwargs:model=echo")
    ],
    "/broker": ["GET /broker"],
    "/api/workers": [
        "GET /api/workers?refresh=1",
        "GET /api/workers",
        "GET /api/workers?refresh=1&workername=@worker@",
    ],
    "/api/worker/shutdown/(.+)": ["POST /api/worker/shutdown/no-such-worker"],
    "/api/worker/pool/restart/(.+)": ["POST /api/worker/pool/restart/@worker@"],
    "/api/worker/pool/grow/(.+)": ["POST /api/worker/pool/grow/@worker@?n=1"],
    "/api/worker/pool/shrink/(.+)": ["POST /api/worker/pool/shrink/@worker@?n=1"],
    "/api/worker/pool/autoscale/(.+)": ["POST /api/worker/pool/autoscale/@worker@?min=1&max=2"],
    "/api/worker/queue/add-consumer/(.+)": ["POST /api/worker/queue/add-consumer/no-such-worker?queue=a"],
    "/api/worker/queue/cancel-consumer/(.+)": ["POST /api/worker/queue/cancel-consumer/no-such-worker?queue=a"],
    "/api/tasks": ["GET /api/tasks", "GET /api/tasks?state=FAILURE", "GET /api/tasks?search=marker"],
    "/api/task/types": ["GET /api/task/types"],
    "/api/queues/length": ["GET /api/queues/length"],
    "/api/task/info/(.*)": ["GET /api/task/info/@task@"],
    "/api/task/apply/(.+)": ["POST /api/task/apply/promptmill.generate", "POST /api/task/apply/celery.accumulate"],
    "/api/task/async-apply/(.+)": ["POST /api/task/async-apply/promptmill.generate"],
    "/api/task/send-task/(.+)": ["POST /api/task/send-task/promptmill.generate"],
    "/api/task/result/(.+)": ["GET /api/task/result/@task@", "GET /api/task/result/@task@?timeout=1"],
    "/api/task/abort/(.+)": ["POST /api/task/abort/@task@"],
    "/api/task/timeout/(.+)": ["POST /api/task/timeout/promptmill.run?workername=@worker@&soft=1000"],
    "/api/task/rate-limit/(.+)": ["POST /api/task/rate-limit/no.such.task?workername=@worker@&ratelimit=1000"],
    "/api/task/revoke/(.+)": ["POST /api/task/revoke/no-such-task"],
    "/metrics": ["GET /metrics"],
    "/healthcheck": ["GET /healthcheck"],
    "/login/?": ["GET /login"],
    "/logout": ["GET /logout"],
    ".*": ["GET /no/such/page", "POST /no/such/page"],
}

OURS = ["GET /fleet", "GET /fleet/data", "GET /fleet/history"]

#: Shown to everybody: that the monitor is alive, and files of the pages' look.
OPEN = {"GET /healthcheck", "GET /login", "GET /logout", "GET /no/such/page", "POST /no/such/page"}


@contextmanager
def an_application(broker_url: str) -> Iterator[Celery]:
    """An application's own Celery that shares the broker, tells of what it sends, and has a worker of its own."""
    before = celery.current_app._get_current_object()
    app = Celery("application", broker=broker_url, backend=broker_url, set_as_current=True)
    app.set_default()
    app.conf.update(task_send_sent_event=True, worker_send_task_events=True, task_track_started=True)

    @app.task(name="application.join", shared=False)
    def join(answers: list[dict[str, Any]]) -> str:
        return " ".join(answer["text"] for answer in answers)

    @app.task(name="application.fail", shared=False)
    def fail(text: str) -> None:
        raise ValueError(text)

    try:
        with start_worker(app, loglevel="WARNING", perform_ping_check=False, pool="solo", concurrency=1):
            yield app
    finally:
        app.close()
        before.set_current()
        before.set_default()


def submit_all(app: Celery, client: Client, broker_url: str) -> None:
    """Tasks of every kind and in every state, with the marker in each."""
    list(client.map([f"{MARKER} one", f"{MARKER} two"], chunk_size=2))
    for prompt in (f"{MARKER} {FAULT_ERROR}", FAULT_ERROR):
        client.submit(prompt)
    signature = app.signature("promptmill.generate", kwargs={"prompt": MARKER}, queue=QUEUE)
    assert MARKER in chord([signature, signature])(app.tasks["application.join"].s()).get(timeout=20)
    app.tasks["application.fail"].delay(MARKER)
    app.tasks["application.join"].apply_async([[{"text": MARKER}]], countdown=600)
    app.send_task("promptmill.generate", args=[MARKER], queue=QUEUE, countdown=600)
    for wrong in ({"temperature": MARKER}, {MARKER: 1}, {}):
        call = app.send_task("promptmill.generate", kwargs={"prompt": MARKER, **wrong}, queue=QUEUE)
        call.get(timeout=20, propagate=False)
    with client_of(broker_url) as redis:
        letter = {"task": "a-letter", "queue": QUEUE, "priority": 6, "version": 1, "timeout_ms": 1000, "ttl": 60}
        text = {"request": json.dumps({"prompt": MARKER}), "reason": "its workers died", "history": "[]"}
        redis.xadd(Names("promptmill:").dead_letters, {**letter, **text})
    for _ in range(3):  # these run meanwhile
        client.submit(f"{MARKER} " * 5000)
        app.send_task("promptmill.generate", args=[f"{MARKER} " * 5000], queue=QUEUE)


def addresses(monitor: MonitorProcess) -> Iterator[str]:
    """Method and path of all there is to ask."""
    tasks, workers = list(monitor.json("/api/tasks")), list(monitor.json("/api/workers"))
    for address in [*(address for asked in ROUTES.values() for address in asked), *OURS]:
        for task in tasks if "@task@" in address else [""]:
            for worker in workers if "@worker@" in address else [""]:
                yield address.replace("@task@", task).replace("@worker@", worker)


def test_every_route_of_flower_is_among_those_that_are_searched() -> None:
    patterns = {rule.regex.pattern.rstrip("$") if hasattr(rule, "regex") else rule[0] for rule in handlers}
    assert patterns - {"/static/(.*)"} == ROUTES.keys()


def test_no_page_and_no_route_shows_a_prompt_an_answer_or_a_password(any_broker_url: str, tmp_path: Path) -> None:
    [password] = re.findall("://[^:]*:([^@]+)@", any_broker_url)
    secrets = [MARKER, password, LOGIN.split(":")[1]]
    options = ("--echo-tokens-per-s", "20", "--beat-s", "0.5")
    with (
        a_worker(any_broker_url, tmp_path / "log", *options) as worker,
        a_monitor(any_broker_url, tmp_path / "monitor", "--log-level", "debug") as monitor,
        an_application(any_broker_url) as app,
        Client(any_broker_url, model="echo") as client,
    ):
        wait_until(monitor.workers, "the monitor knows the worker")
        submit_all(app, client, any_broker_url)
        wait_until(lambda: len(monitor.tasks("STARTED")) >= 6, "it knows what runs")
        wait_until(lambda: len(monitor.json("/api/workers?refresh=1")) == 2, "it knows both workers")
        wait_until(lambda: "application.fail" in {task["name"] for task in monitor.tasks("FAILURE").values()}, "failed")
        asked = {
            address: monitor.ask(*address.split(" ", 1)[::-1], body=_body(address)) for address in addresses(monitor)
        }
        for address, (status, text, headers) in asked.items():
            found = [secret for secret in secrets if secret in text or secret in str(headers)]
            assert not found, f"{address} ({status}) shows it"
            assert status < 500, f"{address}: {text}"
        assert len(asked) > 80
        assert any('"scheduled": [{' in text for _, text, _ in asked.values())
        assert any('"active": [{' in text for _, text, _ in asked.values())
        assert not [secret for secret in secrets if secret in monitor.process.log + worker.log]
        for file in (tmp_path / "monitor" / "state").iterdir():
            assert not [secret for secret in secrets if secret.encode() in file.read_bytes()], file


def _body(address: str) -> bytes | None:
    if not address.startswith("POST /api/task/"):
        return b"" if address.startswith("POST") else None
    return json.dumps({"args": [MARKER], "kwargs": {"prompt": MARKER}, "queue": QUEUE}).encode()


def test_numbers_stand_where_prompts_and_answers_would(broker_url: str, tmp_path: Path) -> None:
    with (
        a_worker(broker_url, tmp_path / "log"),
        a_monitor(broker_url, tmp_path / "monitor") as monitor,
        Client(broker_url, model="echo") as client,
    ):
        wait_until(monitor.workers, "the monitor knows the worker")
        list(client.map(["one two three", "one", FAULT_ERROR], max_tokens=2, chunk_size=3, on_error="yield"))
        wait_until(lambda: monitor.tasks("SUCCESS"), "the monitor knows the task")
        [(task_id, task)] = monitor.tasks("SUCCESS").items()
        assert task["kwargs"] == "{'model': 'echo', 'prompts': 3}"
        assert task["runtime"] > 0
        assert task["result"] == ("4 + 3 tokens, length, stop, errors: EngineError")
        assert "4 + 3 tokens, length, stop" in monitor.ask(f"/task/{task_id}")[1]


def test_nobody_sees_anything_without_the_login(broker_url: str, tmp_path: Path) -> None:
    with a_monitor(broker_url, tmp_path) as monitor:
        for address in [*(address for asked in ROUTES.values() for address in asked), *OURS]:
            if address not in OPEN:
                method, path = address.split(" ", 1)
                for login in (None, "admin:wrong", "nobody", LOGIN + "x", ":"):
                    status, text, _ = monitor.ask(path, method, login=login, body=_body(address))
                    assert (status, text) in ((401, "Access denied"), (401, "")), address
        assert monitor.ask("/fleet")[0] == 200
