"""``StubWorker``: a real worker, without a model, whose answers a test sets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

from promptmill import watchdog
from promptmill.broker import connect
from promptmill.client import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.errors import InvalidRequestError, NoWorkerError, TaskCancelledError
from promptmill.ledger import Ledger
from promptmill.names import Names, queue_name
from promptmill.protocol import GenerationRequest, answer_to_wire
from promptmill.queue_control import QueueControl
from promptmill.settings import ENVIRONMENT_PREFIX, Settings, environment_name
from promptmill.testing.answering import Answering
from promptmill.testing.answers import Answers

__all__ = ["StubWorker"]

#: How long the worker may take to start, in seconds.
START_TIMEOUT_S = 60.0

_OVER = answer_to_wire(TaskCancelledError("the stub worker was reset: the test that submitted this task is over"))


class StubWorker:
    """A worker of this process' own, as a context manager. The answers come from here, all else is real.

    Broker, queue, ledger, streams and Celery calls are those of production; the worker is a child process, which ends
    with this one. It starts in about a second, so that one may serve all tests of a session: ``reset`` it in between.

    Args:
        answers: See ``answers``.
        model: The served name; several workers on one broker have several.
        broker_url: A broker to use; by default an embedded one is started (extra ``embedded``).
        settings: Other settings of a worker by name, such as ``max_in_flight``.

    Attributes:
        broker_url: The broker's URL, for ``Client``, ``AsyncClient`` and Celery. It may hold a password.
        model: The served name.
        client: A client of this worker.
    """

    def __init__(
        self, answers: Answers = None, *, model: str = "stub", broker_url: str | None = None, **settings: Any
    ) -> None:
        self.model = model
        self.broker_url = broker_url or ""
        self.client: Client
        self._first_answers = answers
        self._settings = settings
        self._answering: Answering
        self._started = ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables by which an application's ``Client()`` finds this worker."""
        return {environment_name("broker_url"): self.broker_url, environment_name("model"): self.model}

    @property
    def answers(self) -> Answers:
        """What is answered; may be set at any time.

        A text for all, or a mapping from prompts (of chats: their last message) to texts, or a function of the
        GenerationRequest, which is called on a thread of its own. In a text's place there may be an iterable of pieces,
        which are streamed as they come, a GenerationResult, or an error below PromptmillError, which a function may
        raise, too. None: an echo, the words of the prompt.
        """
        return self._answering.answers

    @answers.setter
    def answers(self, answers: Answers) -> None:
        self._answering.answers = answers

    @property
    def requests(self) -> list[GenerationRequest]:
        """What was asked since the start or the last ``reset``, in the order in which the worker took it."""
        return list(self._answering.requests)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the broker, unless one was named, and the worker; returns once it takes tasks.

        Raises:
            InvalidSettingError: there is no embedded broker here.
            NoWorkerError: the worker did not start; its last words are in the message.
        """
        with ExitStack() as started:
            if not self.broker_url:
                self.broker_url = started.enter_context(EmbeddedBroker(appendfsync="no")).url
                started.callback(setattr, self, "broker_url", "")
            self.client = started.enter_context(Client(self.broker_url, model=self.model))
            ours, theirs = socket.socketpair()
            self._answering = Answering(ours)
            started.callback(self._answering.close)
            self.answers = self._first_answers
            with theirs:
                log = started.enter_context(tempfile.TemporaryFile())
                process = self._start_worker(theirs, log)
            started.callback(watchdog.ask_to_stop, process)
            self._await_ready(process, log)
            self._started = started.pop_all()

    def stop(self) -> None:
        """Ends worker and broker at once, and what is queued with them."""
        self._started.close()

    def reset(self) -> None:
        """Begins anew, between two tests.

        Open tasks of this model are cancelled, ``requests`` is empty, and ``answers`` is what it was at the start.
        Plain Celery calls that the worker has not taken yet are deleted.
        """
        self._cancel_all()
        while not self._answering.is_at_rest():  # it has taken a plain call meanwhile
            self._cancel_all()
        self._answering.requests.clear()
        self.answers = self._first_answers

    def _cancel_all(self) -> None:
        names = Names(self.client.settings.key_prefix)
        with connect(self.client.settings) as redis:
            ledger = Ledger(redis, names)
            for key in redis.scan_iter(names.record("*"), count=1000):
                lane = redis.hget(key, "lane") or b""
                if lane.decode().startswith((f"{queue_name(self.model)}|", f"{queue_name(self.model)}:")):
                    ledger.settle(key.decode().removeprefix(names.record("")), _OVER)
        # Unknown is a model whose worker has died, and for which nothing is queued.
        with QueueControl(self.client.settings) as control, suppress(InvalidRequestError):
            control.purge(self.model)

    def _start_worker(self, connection: socket.socket, log: IO[bytes]) -> subprocess.Popen[bytes]:
        number = connection.fileno()
        return watchdog.start_watched(
            [sys.executable, "-P", "-m", "promptmill_worker.stub", str(number)],
            0,  # there is nothing to lose
            env=self._worker_environment(),
            stdout=log,
            stderr=log,
            pass_fds=[number],
        )

    def _worker_environment(self) -> dict[str, str]:
        """Ours, without the settings of a worker that may be in it."""
        shared = {environment_name(name) for name in Settings.model_fields}
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in shared or not name.startswith(ENVIRONMENT_PREFIX)
        }
        settings = {"broker_url": self.broker_url, "model": self.model, "served_name": self.model, **self._settings}
        return {**kept, **{environment_name(name): str(value) for name, value in settings.items()}}

    def _await_ready(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._answering.ready.wait(START_TIMEOUT_S)
        deadline = time.monotonic() + START_TIMEOUT_S
        # It tells that it takes tasks; that it is in the fleet, too, is told by another of its threads.
        while process.poll() is None and time.monotonic() < deadline:
            if any(worker.served_name == self.model for worker in self.client.fleet().workers):
                return
            time.sleep(0.01)
        log.seek(0)
        words = log.read().decode(errors="replace").strip().splitlines()
        last = "".join(words[-1:]).removeprefix("promptmill: ") or "it said nothing"
        raise NoWorkerError(f"the stub worker did not start: {last}", self.model)
