"""A ``promptmill monitor`` for tests: a real one, and gone when its block is left."""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

from brokers import free_port
from workers import WorkerProcess, a_process, wait_until

LOGIN = "admin:a-login-password"


class MonitorProcess:
    """A monitor, and its pages."""

    def __init__(self, process: WorkerProcess, port: int, login: str | None) -> None:
        self.process = process
        self.port = port
        self.login = login
        self.url = f"http://127.0.0.1:{port}"

    def ask(
        self, path: str, method: str = "GET", *, login: str | None = "", body: bytes | None = None
    ) -> tuple[int, str, HTTPMessage]:
        """Status, text and headers of an answer; redirects are not followed."""
        request = urllib.request.Request(self.url + path, data=body, method=method)
        login = self.login if login == "" else login
        if login is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=20) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def json(self, path: str) -> Any:
        """What a route answers."""
        status, text, _ = self.ask(path)
        assert status == 200, text
        return json.loads(text)

    def workers(self) -> list[str]:
        """Celery's names of the workers that are alive."""
        return [row["hostname"] for row in self.json("/workers?json=1")["data"] if row["status"]]

    def tasks(self, state: str) -> dict[str, Any]:
        """The tasks in a state, by id."""
        return {name: task for name, task in self.json("/api/tasks").items() if task["state"] == state}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def a_monitor(
    broker_url: str, folder: Path, *options: str, login: str | None = LOGIN, **environment: str
) -> Iterator[MonitorProcess]:
    """A monitor with a password file, or an open one with ``login=None``; its state is kept in ``folder``."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    if login is not None:
        (folder / "logins").write_text(f"# who may look\n{login}\n")
        options = ("--password-file", str(folder / "logins"), *options)
    command = [sys.executable, "-m", "promptmill.cli", "monitor", "--listen-port", str(port)]
    command += ["--state-dir", str(folder / "state"), *options]
    with a_process(command, folder / "monitor.log", PROMPTMILL_BROKER_URL=broker_url, **environment) as process:
        started = f":{port}/"
        wait_until(lambda: started in process.log or not process.is_alive, "the monitor answers", 30)
        assert process.is_alive, process.log
        yield MonitorProcess(process, port, login)
