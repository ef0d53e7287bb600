"""Answering what a stub worker asks: in the test's process, over a socket to the worker's.

Both sides write JSON lines. The worker: ``{"ask", "request"}`` for each prompt in its engine, ``{"cancel"}`` when one
is taken out, and ``{"ready"}`` once it takes tasks. We: ``{"ask", "piece"}``, and at the end ``{"ask", "answer"}``, or
``{"ask", "echo"}``. To our ``{"rests"}`` it replies whether it has nothing left to do, after a moment if need be.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import threading
from typing import Any

from promptmill.errors import EngineError, PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult, answer_to_wire
from promptmill.testing.answers import Answer, Answers, answer_to, result_with

__all__ = ["Answering"]

log = logging.getLogger(__name__)


class Answering:
    """Answers on threads of its own: one that reads, and one for each answer that may take time.

    Args:
        connection: To the worker; closed by ``close``.

    Attributes:
        answers: What is answered from now on; any thread may set it.
        requests: What was asked so far, in the order in which the worker took it.
        ready: Set once the worker takes tasks, and when it ends.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.answers: Answers = None
        self.requests: list[GenerationRequest] = []
        self.ready = threading.Event()
        self._connection = connection
        self._sending = threading.Lock()
        #: Asked and not answered yet; what is cancelled leaves.
        self._open: set[int] = set()
        self._rests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="promptmill stub answers", daemon=True)
        self._reader.start()

    def is_at_rest(self) -> bool:
        """Whether the worker has nothing left to do, and all that it asked is in ``requests``; one thread may ask."""
        self._send({"rests": True})
        while self._reader.is_alive():
            with contextlib.suppress(queue.Empty):
                return self._rests.get(timeout=0.1)
        return True

    def close(self) -> None:
        """Ends the reading; a function that still waits is let alone."""
        with contextlib.suppress(OSError):  # the worker may have closed its end
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
        self.ready.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "ask" not in message:
            self._open.discard(message.get("cancel", -1))
            if "ready" in message:
                self.ready.set()
            if "rests" in message:
                self._rests.put(message["rests"])
            return
        request = GenerationRequest.model_validate(message["request"])
        self.requests.append(request)
        self._open.add(message["ask"])
        answers = self.answers
        if answers is None or isinstance(answers, str | GenerationResult | PromptmillError):
            self._answer(message["ask"], request, answers)
        else:
            # Of its own, and not of a pool: as many may wait as the worker has prompts, and none holds the exit up.
            threading.Thread(target=self._answer, args=(message["ask"], request, answers), daemon=True).start()

    def _answer(self, ask: int, request: GenerationRequest, answers: Answers) -> None:
        try:
            answer = answer_to(request, answers)
            if answer is None:
                self._send({"ask": ask, "echo": True})
                return
            outcome = self._whole(ask, request, answer)
        except PromptmillError as error:
            outcome = error
        except BaseException as error:  # an assertion of the test's, or a failure of its framework
            log.exception("the function that answers for the stub worker failed")
            outcome = EngineError(f"the function that answers for the stub worker raised {type(error).__name__}")
        self._open.discard(ask)
        self._send({"ask": ask, "answer": answer_to_wire(outcome).decode()})

    def _whole(self, ask: int, request: GenerationRequest, answer: Answer) -> GenerationResult | PromptmillError:
        if isinstance(answer, GenerationResult | PromptmillError):
            return answer
        if isinstance(answer, str):
            return result_with(answer, request)
        text = ""
        for piece in answer:
            if ask not in self._open:  # cancelled: the pieces may have no end
                break
            text += piece
            self._send({"ask": ask, "piece": piece})
        return result_with(text, request)

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # the worker has ended: nobody waits for this
            self._connection.sendall(json.dumps(message).encode() + b"\n")
