"""An engine that asks a test for its answers: the worker's side of ``promptmill.testing``."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from promptmill.errors import PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult, answer_from_wire
from promptmill_worker.echo import EchoEngine
from promptmill_worker.engine import Engine, EngineDiedError, EngineInfo, OnText
from promptmill_worker.room import Room
from promptmill_worker.settings import EngineSettings
from promptmill_worker.windowed import WindowedAnswer, submit_windows
from promptmill_worker.windows import Spans

__all__ = ["StubEngine"]

#: How long a worker that is asked whether it rests may still become so, in seconds; and how often it looks.
REST_WITHIN_S, LOOK_EVERY_S = 0.1, 0.002


@dataclass
class _Asked:
    request: GenerationRequest
    on_text: OnText | None
    text: str = ""


class StubEngine(Engine):
    """Asks for each answer over a socket, once it has begun; see ``promptmill.testing.answering``.

    Args:
        settings: ``model``, ``max_batch`` and ``max_model_len`` count, as for the echo engine.
        connection: To the test's process.
    """

    def __init__(self, settings: EngineSettings, connection: socket.socket) -> None:
        self._echo = EchoEngine(settings)
        self.info: EngineInfo = self._echo.info.model_copy(update={"engine": "stub"})
        self._connection = connection
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[Future[GenerationResult], _Asked]] = {}
        self._steps = 0
        self._begun = self._closed = False
        self._room: Room
        self._places: int
        threading.Thread(target=self._read, name="promptmill stub engine", daemon=True).start()

    def begin(self, room: Room) -> None:
        """Tells that the worker takes tasks. What the worker warms up with before is echoed: no test knows of it.

        Args:
            room: The worker's, while it has nothing to do.
        """
        self._room, self._places = room, room.free
        self._begun = True
        self._tell({"ready": True})

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """See ``Engine.submit``."""
        if not self._begun:
            return self._echo.submit(request, on_text)
        if request.sampling.window_tokens is not None:
            return submit_windows(self, request, on_text)
        future: Future[GenerationResult] = Future()
        number = next(self._numbers)
        self._asked[number] = future, _Asked(request, on_text)
        future.add_done_callback(partial(self._on_done, number))
        if self._closed:
            future.set_exception(EngineDiedError("the engine is closed"))
        else:
            self._tell({"ask": number, "request": request.model_dump(mode="json", exclude_unset=True)})
        return future

    def partial_text(self, future: Future[GenerationResult]) -> str:
        """See ``Engine.partial_text``: the pieces so far."""
        if isinstance(future, WindowedAnswer):
            return future.partial_text()
        return next((asked.text for other, asked in list(self._asked.values()) if other is future), "")

    def token_spans(self, text: str) -> Spans:
        """See ``Engine.token_spans``: those of the words."""
        return self._echo.token_spans(text)

    @property
    def running(self) -> int:
        """See ``Engine.running``."""
        return len(self._asked)

    @property
    def steps(self) -> int:
        """See ``Engine.steps``; grows whenever it is read, as a test's function may wait for as long as it likes."""
        self._steps += 1
        return self._steps

    @property
    def failure(self) -> BaseException | None:
        """See ``Engine.failure``: of the echo engine, which may be asked to die."""
        return self._echo.failure

    def close(self) -> None:
        """See ``Engine.close``."""
        self._closed = True
        for future, _ in list(self._asked.values()):
            _end(future, EngineDiedError("the engine is closed"))
        self._connection.close()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _on_done(self, number: int, future: Future[GenerationResult]) -> None:
        self._asked.pop(number, None)
        if future.cancelled():
            self._tell({"cancel": number})

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "rests" in message:  # the answers that it may wait for are read meanwhile
                    threading.Thread(target=self._tell_of_rest, daemon=True).start()
                    continue
                future, asked = self._asked.get(message["ask"], (None, None))
                if future is not None and asked is not None:
                    self._take(message, future, asked)

    def _tell_of_rest(self) -> None:
        until = time.monotonic() + REST_WITHIN_S
        while self._room.free < self._places and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
        self._tell({"rests": self._room.free == self._places})

    def _take(self, message: dict[str, Any], future: Future[GenerationResult], asked: _Asked) -> None:
        if "piece" in message:
            asked.text += message["piece"]
            self._pass_on(asked, range(asked.request.sampling.n), message["piece"])
        elif "echo" in message:
            self._echo.submit(asked.request, asked.on_text).add_done_callback(partial(_end_alike, future))
        else:
            answer = answer_from_wire(message["answer"])
            if isinstance(answer, GenerationResult):
                for choice in answer.choices:
                    self._pass_on(asked, [choice.index], choice.text.removeprefix(asked.text))
            _end(future, answer)

    @staticmethod
    def _pass_on(asked: _Asked, choices: Any, text: str) -> None:
        if asked.on_text is not None and text:
            for choice in choices:
                asked.on_text(choice, text)


def _end(future: Future[GenerationResult], answer: GenerationResult | PromptmillError) -> None:
    if future.set_running_or_notify_cancel():
        if isinstance(answer, PromptmillError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _end_alike(future: Future[GenerationResult], echo: Future[GenerationResult]) -> None:
    error = echo.exception()
    assert error is None or isinstance(error, PromptmillError)
    _end(future, echo.result() if error is None else error)
