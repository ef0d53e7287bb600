"""The worker process of ``promptmill.testing``: ``python -m promptmill_worker.stub FD``, the end of a socket."""

from __future__ import annotations

import socket
import sys

from promptmill.errors import PromptmillError
from promptmill.log_format import Log
from promptmill_worker.settings import WorkerSettings
from promptmill_worker.stub_engine import StubEngine
from promptmill_worker.worker import create_worker_app, run_worker

__all__ = ["main"]


def main(connection: socket.socket) -> int:
    """Serves as the environment says, with answers from ``connection``; returns the exit code."""
    # What a test sees of the fleet is no older than this, and there is no speed to measure.
    settings = WorkerSettings.read(beat_s=0.5, measure_s=0)
    engine = StubEngine(settings, connection)
    app = create_worker_app(settings, lambda _: engine)
    return run_worker(app, settings, Log("warning"), lambda **_: engine.begin(app.conf.worker_pool.room))


if __name__ == "__main__":
    try:
        code: int | str = main(socket.socket(fileno=int(sys.argv[1])))
    except PromptmillError as error:
        code = f"promptmill: {error}"
    sys.exit(code)
