"""Where claimed prompts wait until the engine has a slot for them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from promptmill.names import Priority
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker.engine import Engine, EngineDiedError, EngineInfo, OnText, failed
from promptmill_worker.waiting_line import WaitingLine
from promptmill_worker.windowed import WindowedAnswer, submit_windows
from promptmill_worker.windows import Spans

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """Lets prompts into an engine in the order of ``WaitingLine``, as many as it runs at once. Thread-safe.

    The engine itself would run them in the order in which they come: one that is urgent would wait for all that were
    claimed before it. When one ends, the next goes in on the thread that ended it, before the engine's next step.

    Args:
        engine: Nobody else submits to it any more.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._line: WaitingLine[_Waiter] = WaitingLine()
        #: What is in the engine, and how many of its choices have not ended.
        self._inside: dict[Future[GenerationResult], int] = {}
        #: Slots that are taken, one a choice. (Not the sum of the above: they are taken before the engine is asked.)
        self._taken = 0
        self._filling = threading.local()
        engine.on_choice = self._on_choice

    def submit(
        self,
        request: GenerationRequest,
        on_text: OnText | None = None,
        priority: int = Priority.NORMAL,
        turn: float = 0.0,
    ) -> Future[GenerationResult]:
        """``Engine.submit`` once there is a slot; cancelling the future before that takes the prompt out of the line.

        Of a request over windows each window waits for itself.
        """
        if request.sampling.window_tokens is not None:
            return submit_windows(_Entrance(self, self._engine, priority, turn), request, on_text)
        with self._lock:
            goes_in = not self._line and self._has_slot()
            if goes_in:
                self._taken += request.sampling.n
            else:
                waiter = _Waiter(request, on_text)
                self._line.push(waiter, priority, turn)
        if goes_in:
            return self._let_in(request, on_text)
        waiter.add_done_callback(self._on_waiter_done)
        self._fill()  # a slot may have become free meanwhile
        return waiter

    def partial_text(self, future: Future[GenerationResult]) -> str:
        """See ``Engine.partial_text``; "" while it waits."""
        if isinstance(future, WindowedAnswer):
            return future.partial_text()
        if isinstance(future, _Waiter):
            return "" if future.inner is None else self._engine.partial_text(future.inner)
        return self._engine.partial_text(future)

    def has_begun(self, future: Future[GenerationResult]) -> bool:
        """Whether what ``submit`` returned ``future`` for has been in the engine, a window of it at least."""
        if isinstance(future, WindowedAnswer):
            return any(map(self.has_begun, future.parts))
        return not isinstance(future, _Waiter) or future.has_begun

    def waited_s(self, future: Future[GenerationResult]) -> float:
        """How long a prompt waited here before it went into the engine, in seconds; of windows their answer tells."""
        return future.waited_s if isinstance(future, _Waiter) else 0.0

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._lock:
            return len(self._line)

    def _has_slot(self) -> bool:
        # One with many choices begins with the first free slot, or it would wait for ever behind those with few.
        return self._taken < max(1, self._engine.info.max_batch)

    def _fill(self) -> None:
        if getattr(self._filling, "now", False):
            return  # one that was let in has ended at once, on this thread: the loop below goes on
        self._filling.now = True
        try:
            while (waiter := self._next()) is not None:
                waiter.follow(self._let_in(waiter.request, waiter.on_text))
        finally:
            self._filling.now = False

    def _next(self) -> _Waiter | None:
        with self._lock:
            if not self._line or not self._has_slot():
                return None
            waiter = self._line.pop()
            self._taken += waiter.request.sampling.n
            waiter.begin()
            return waiter

    def _let_in(self, request: GenerationRequest, on_text: OnText | None) -> Future[GenerationResult]:
        try:
            future = self._engine.submit(request, on_text)
        except Exception as error:  # on the engine's thread nobody would see it, and the slot would be lost
            future = failed(error)
        with self._lock:
            self._inside[future] = request.sampling.n
        future.add_done_callback(self._on_end)
        return future

    def _on_choice(self, future: Future[GenerationResult]) -> None:
        with self._lock:
            left = self._inside.get(future, 0)
            if left < 2:  # the last one's slot becomes free when the future ends
                return
            self._inside[future] = left - 1
            self._taken -= 1
        self._fill()

    def _on_end(self, future: Future[GenerationResult]) -> None:
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._taken -= self._inside.pop(future)
            stranded = self._line.clear() if isinstance(error, EngineDiedError) else []
        for waiter in stranded:
            waiter.fail(error)
        self._fill()

    def _on_waiter_done(self, waiter: Future[GenerationResult]) -> None:
        if waiter.cancelled() and isinstance(waiter, _Waiter):
            with self._lock:
                self._line.remove(waiter)
            waiter.leave()


class _Waiter(Future[GenerationResult]):
    """Stands for the engine's future, which is not there before there is a slot."""

    def __init__(self, request: GenerationRequest, on_text: OnText | None) -> None:
        super().__init__()
        self.request = request
        self.on_text = on_text
        #: Set before the engine has it: should that die of it, it was in it.
        self.has_begun = False
        #: The engine's.
        self.inner: Future[GenerationResult] | None = None
        self.waited_s = 0.0
        self._came_at = time.monotonic()

    def begin(self) -> None:
        """Its wait is over."""
        self.has_begun = True
        self.waited_s = time.monotonic() - self._came_at

    def follow(self, inner: Future[GenerationResult]) -> None:
        """It is in the engine: ends as ``inner`` does."""
        self.inner = inner
        inner.add_done_callback(self._take_over)
        if self.cancelled():  # meanwhile
            self.leave()

    def leave(self) -> None:
        """Takes it out of the engine, if it is there."""
        if self.inner is not None:
            self.inner.cancel()

    def fail(self, error: BaseException | None) -> None:
        """Ends with ``error``, unless it was cancelled."""
        if self.set_running_or_notify_cancel():
            self.set_exception(error)

    def _take_over(self, inner: Future[GenerationResult]) -> None:
        if inner.cancelled():
            self.cancel()
        elif (error := inner.exception()) is not None:
            self.fail(error)
        elif self.set_running_or_notify_cancel():
            self.set_result(inner.result())


@dataclass(frozen=True)
class _Entrance:
    """The room as a request over windows sees it: an engine, to which its windows go at its rank."""

    _room: WaitingRoom
    _engine: Engine
    _priority: int
    _turn: float

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        return self._room.submit(request, on_text, self._priority, self._turn)

    def partial_text(self, future: Future[GenerationResult]) -> str:
        return self._room.partial_text(future)

    def token_spans(self, text: str) -> Spans:
        return self._engine.token_spans(text)
