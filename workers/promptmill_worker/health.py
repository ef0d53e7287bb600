"""Is this worker well, and what does it do? Asked by Docker, Kubernetes, load balancers and Prometheus, over HTTP."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Health", "HealthServer"]

log = logging.getLogger(__name__)

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

#: Celery's loop ticks every second; without one for this long it does not consume, in seconds.
TICK_LIMIT_S = 15.0


class Health:
    """What is known of the worker's state. Thread-safe: each value is written by one thread."""

    def __init__(self, beat_limit_s: float) -> None:
        self._beat_limit_s = beat_limit_s
        self._ticked_at: float | None = None
        self._beat_at = time.monotonic()
        self.engine_loaded = False

    def tick(self) -> None:
        """Celery's event loop is connected and turns."""
        self._ticked_at = time.monotonic()

    def beat(self) -> None:
        """The broker has renewed our leases."""
        self._beat_at = time.monotonic()

    def troubles(self) -> list[str]:
        """What is wrong with a worker that has started; empty if nothing is."""
        if not self.engine_loaded or self._ticked_at is None:
            return []
        now = time.monotonic()
        found = []
        if now - self._ticked_at > TICK_LIMIT_S:
            found.append("the consumer does not consume")
        if now - self._beat_at > self._beat_limit_s:
            found.append("the broker does not answer")
        return found

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and the worker takes prompts."""
        return self.engine_loaded and self._ticked_at is not None and not self.troubles()


class HealthServer:
    """Answers ``/healthz`` (200 while nothing is wrong), ``/readyz`` (200 while prompts are taken) and ``/metrics``.

    A port that is taken is no reason not to work: it is logged, and the worker goes on without.

    Args:
        health: What to tell.
        metrics: Tells the page for Prometheus.
        host: Address to listen on.
        port: TCP port.
    """

    def __init__(self, health: Health, metrics: Callable[[], bytes], host: str, port: int) -> None:
        self._health = health
        self._metrics = metrics
        self._place = (host, port)
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listens, on a thread of its own."""
        health, metrics = self._health, self._metrics

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self._answer(not health.troubles())
                elif self.path == "/readyz":
                    self._answer(health.ready)
                elif self.path == "/metrics":
                    self._send(HTTPStatus.OK, PROMETHEUS_TEXT, metrics())
                else:
                    self.send_error(HTTPStatus.NOT_FOUND)

            def _answer(self, well: bool) -> None:
                body = json.dumps({"well": well, "troubles": health.troubles()}).encode()
                self._send(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)

            def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
                log.debug(format, *arguments)

        try:
            self._server = ThreadingHTTPServer(self._place, Handler)
        except OSError as error:
            log.warning("no health page: %s:%d can't be used (%s)", *self._place, error.strerror)
            return
        threading.Thread(target=self._server.serve_forever, name="promptmill health", daemon=True).start()

    def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
