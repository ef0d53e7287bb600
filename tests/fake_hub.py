"""A hub on this machine, which answers as huggingface.co does, mistakes and refusals included."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub has, and what it is asked for.

    A model's name tells how it behaves: "gated" in it needs the token ``member``, "private" too, and is not shown
    without it. The token ``expired`` is not accepted for anything.
    """

    #: Folders by model name.
    models: dict[str, Path]
    url: str = ""
    #: Answers everything with this status, if set.
    broken: int = 0
    asked: list[str] = field(default_factory=list)

    def refusal(self, name: str, revision: str, token: str, wants_file: bool) -> tuple[int, str, str] | None:
        """(status, X-Error-Code, X-Error-Message), or None where it lets the files be read."""
        if self.broken:
            return self.broken, "", ""
        if token == "expired":
            return 401, "", "Invalid credentials in Authorization header"
        if name not in self.models or ("private" in name and token != "member"):
            # Who has not logged in is not told which names exist.
            return (
                (404, "RepoNotFound", "Repository not found") if token else (401, "", "Invalid username or password.")
            )
        if "gated" in name and wants_file and token != "member":
            return 403 if token else 401, "GatedRepo", f"Access to model {name} is restricted."
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound", f"Invalid rev id: {revision}"
        return None


@contextmanager
def fake_hub(**models: Path) -> Iterator[FakeHub]:
    """Runs a hub with the models, each as ``demo/<name>``."""
    hub = FakeHub({f"demo/{name}": path for name, path in models.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0].removeprefix("/")
        self.hub.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        name, wants_file = "/".join(parts[:2]), not path.startswith("api/")
        revision = parts[3] if len(parts) > 3 else "main"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        refused = self.hub.refusal(name, revision, token, wants_file)
        if refused is not None:
            self._refuse(*refused)
        elif wants_file:
            self._file(self.hub.models[name] / "/".join(parts[4:]), with_body)
        elif "tree" in parts:
            self._send(json.dumps(self._tree(self.hub.models[name])).encode(), with_body)
        else:
            files = [{"rfilename": file.name} for file in self.hub.models[name].iterdir()]
            self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), with_body)

    def _tree(self, folder: Path) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
            for file in folder.iterdir()
        ]

    def _file(self, file: Path, with_body: bool) -> None:
        if file.is_file():
            self._send(file.read_bytes(), with_body, ETag=f'"{_etag(file)}"')
        else:
            self._refuse(404, "EntryNotFound", "Entry not found")

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(b"", True, status, **{name: value for name, value in headers.items() if value})

    def _send(self, body: bytes, with_body: bool, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:40]
