"""An engine without a model: it answers with the words of the prompt.

For tests, benchmarks of the queue, and other people's tests. A word counts as a token. With
``echo_tokens_per_s`` at 0 a request is answered before ``submit`` returns; above, each request runs at that speed,
whatever else runs.

A prompt that is exactly one of the ``FAULT_…`` strings makes the engine fail in that way.
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from promptmill.errors import EngineError, PromptmillError, PromptTooLongError
from promptmill.protocol import FinishReason, GenerationRequest, GenerationResult, Timings
from promptmill_worker.engine import Engine, EngineDiedError, EngineInfo, OnText, failed
from promptmill_worker.settings import EngineSettings
from promptmill_worker.windowed import WindowedAnswer, submit_windows
from promptmill_worker.windows import Spans

__all__ = ["FAULT_DIE", "FAULT_ERROR", "FAULT_HANG", "FAULT_KILL", "EchoEngine"]

#: This prompt's future raises EngineError; its neighbours don't notice.
FAULT_ERROR = "promptmill-fault:error"
#: The engine dies: ``failure`` is set, and all that is pending raises EngineDiedError.
FAULT_DIE = "promptmill-fault:die"
#: The engine stands still for good: nothing ends any more, and ``steps`` stops growing.
FAULT_HANG = "promptmill-fault:hang"
#: The process kills itself with SIGKILL.
FAULT_KILL = "promptmill-fault:kill"

#: The context where ``max_model_len`` is not set, in words.
DEFAULT_CONTEXT_TOKENS = 1_000_000

#: How often ``steps`` grows while requests run and none of them ends, in seconds.
STEP_S = 0.1

#: (time it is due, order of submission, future, what then happens)
_Due = tuple[float, int, "Future[GenerationResult]", Callable[[], None]]


class EchoEngine(Engine):
    """Answers with the words of the prompt; of a chat, with those of its last message.

    Args:
        settings: ``echo_tokens_per_s`` and ``max_model_len`` count.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.info = EngineInfo(
            model=settings.model,
            engine="echo",
            device="cpu",
            context_tokens=settings.max_model_len or DEFAULT_CONTEXT_TOKENS,
            max_batch=settings.max_batch,
        )
        self._tokens_per_s = settings.echo_tokens_per_s
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._due: list[_Due] = []
        #: What runs: when it was submitted, and what it will be answered with.
        self._pending: dict[Future[GenerationResult], tuple[float, GenerationResult]] = {}
        self._steps = 0
        #: Words of what has ended.
        self._tokens = 0
        self._hangs = False
        self._closed = False
        self._failure: BaseException | None = None
        self._timer: threading.Thread | None = None

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """See ``Engine.submit``; a word is a piece."""
        if request.sampling.window_tokens is not None:
            return submit_windows(self, request, on_text)
        try:
            self._refuse_if_dead()
            if request.prompt is not None and request.prompt.startswith("promptmill-fault:"):
                self._provoke(request.prompt)
            result = self._answer(request)
        except PromptmillError as error:
            return failed(error)
        future: Future[GenerationResult] = Future()
        if self._tokens_per_s == 0 and not self._hangs:
            with self._changed:
                self._steps += 1
                self._tokens += result.usage.completion_tokens
            if on_text is not None:
                _tell(on_text, [(choice.index, choice.text) for choice in result.choices])
            future.set_result(result)
        else:
            self._schedule(future, result, on_text)
        return future

    def partial_text(self, future: Future[GenerationResult]) -> str:
        """See ``Engine.partial_text``: the words that are due by now."""
        if isinstance(future, WindowedAnswer):
            return future.partial_text()
        started_at, result = self._pending.get(future, (0.0, None))
        if result is None or future.done():
            return ""
        words_due = int((time.monotonic() - started_at) * self._tokens_per_s)
        return " ".join(result.text.split()[:words_due])

    def token_spans(self, text: str) -> Spans:
        """See ``Engine.token_spans``: those of the words."""
        return [word.span() for word in re.finditer(r"\S+", text)]

    @property
    def running(self) -> int:
        """See ``Engine.running``."""
        return len(self._pending)

    @property
    def tokens(self) -> int:
        """See ``Engine.tokens``: the words that are due by now."""
        now = time.monotonic()
        with self._changed:
            running = [self._words_due(now - started_at, result) for started_at, result in self._pending.values()]
            return self._tokens + sum(running)

    def _words_due(self, elapsed_s: float, result: GenerationResult) -> int:
        return min(result.usage.completion_tokens, int(elapsed_s * self._tokens_per_s * len(result.choices)))

    @property
    def steps(self) -> int:
        """See ``Engine.steps``; grows with every answer, and every 0.1 s while requests run."""
        return self._steps

    @property
    def failure(self) -> BaseException | None:
        """See ``Engine.failure``; closing is no failure."""
        return self._failure

    def close(self) -> None:
        """See ``Engine.close``."""
        with self._changed:
            self._closed = True
            timer = self._timer
        self._end_pending(EngineDiedError("the engine is closed"))
        if timer is not None and timer is not threading.current_thread():
            timer.join()

    def _refuse_if_dead(self) -> None:
        if self._closed:
            raise EngineDiedError("the engine is closed")
        if self._failure is not None:
            raise EngineDiedError(f"the engine died: {self._failure}")

    def _provoke(self, fault: str) -> None:
        if fault == FAULT_ERROR:
            raise EngineError("the echo engine was asked to fail for this prompt")
        if fault == FAULT_DIE:
            self._failure = RuntimeError("the echo engine was asked to die")
            died = EngineDiedError(f"the engine died: {self._failure}")
            self._end_pending(died)
            raise died
        if fault == FAULT_HANG:
            self._hangs = True
        if fault == FAULT_KILL:
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, request: GenerationRequest) -> GenerationResult:
        sampling = request.sampling
        words = (request.messages[-1].content if request.messages else request.prompt or "").split()
        if sampling.truncate_prompt_tokens is not None:
            words = words[-sampling.truncate_prompt_tokens :]
        room = self.info.context_tokens - len(words)
        if room < 1:
            longest = self.info.context_tokens - 1
            raise PromptTooLongError(
                f"the prompt has {len(words):,} words, at most {longest:,} fit the echo engine's context: "
                "shorten it, or set truncate_prompt_tokens",
                len(words),
                longest,
            )
        kept = words[: min(sampling.max_tokens, room)]
        text = " ".join(kept)
        reason: FinishReason = "length" if len(kept) < len(words) else "stop"
        tokens = len(kept)
        if sampling.stop and (cut := _cut(text, sampling.stop, sampling.include_stop_str_in_output)) is not None:
            text, reason, tokens = cut, "stop", len(cut.split())
        # Plain dictionaries: pydantic builds the parts from them faster than from objects of ours.
        choice: dict[str, Any] = {"text": text, "finish_reason": reason}
        if sampling.logprobs is not None:
            choice["logprobs"] = [{"token": word, "token_id": 0, "logprob": 0.0} for word in kept[:tokens]]
        return GenerationResult.model_validate(
            {
                "model": self.info.model,
                "choices": [{"index": index, **choice} for index in range(sampling.n)],
                "usage": {"prompt_tokens": len(words), "completion_tokens": tokens * sampling.n},
                "timings": self._timings(tokens),
            }
        )

    def _timings(self, tokens: int) -> Timings:
        if self._tokens_per_s == 0:
            return _AT_ONCE
        return Timings(time_to_first_token_s=1 / self._tokens_per_s, generation_s=max(1, tokens) / self._tokens_per_s)

    def _schedule(self, future: Future[GenerationResult], result: GenerationResult, on_text: OnText | None) -> None:
        with self._changed:
            now = time.monotonic()
            self._pending[future] = now, result
            if on_text is not None:
                self._plan_words(now, future, result, on_text)
            self._plan(now + result.timings.generation_s, future, partial(_end, future, result))
            if self._timer is None:
                self._timer = threading.Thread(target=self._run, name="promptmill-echo-timer", daemon=True)
                self._timer.start()
            self._changed.notify()
        future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[GenerationResult]) -> None:
        with self._changed:
            started_at, result = self._pending.pop(future)
            self._tokens += self._words_due(time.monotonic() - started_at, result)

    def _plan_words(
        self, now: float, future: Future[GenerationResult], result: GenerationResult, on_text: OnText
    ) -> None:
        for number, word in enumerate(_words(result.text), start=1):
            pieces = [(choice.index, word) for choice in result.choices]
            self._plan(now + number / self._tokens_per_s, future, partial(_tell, on_text, pieces))

    def _plan(self, due: float, future: Future[GenerationResult], action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (due, next(self._order), future, action))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed or self._failure is not None:
                    return
                ready = self._take_ready()
                if not ready:
                    self._changed.wait(self._pause_s())
            for _, _, future, act in ready:
                if not future.cancelled():
                    act()

    def _take_ready(self) -> list[_Due]:
        ready: list[_Due] = []
        if self._hangs:
            return ready
        if self._pending:
            self._steps += 1
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            ready.append(heapq.heappop(self._due))
        return ready

    def _pause_s(self) -> float | None:
        if self._hangs or not self._due:
            return None
        return min(STEP_S, max(0.0, self._due[0][0] - time.monotonic()))

    def _end_pending(self, error: EngineDiedError) -> None:
        with self._changed:
            due, self._due = self._due, []
            self._changed.notify_all()
        for future in dict.fromkeys(future for _, _, future, _ in due):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


_AT_ONCE = Timings()


def _words(text: str) -> list[str]:
    """The text in pieces of a word each, with the white space around it."""
    return re.findall(r"\s*\S+(?:\s+$)?", text) or [text]


def _tell(on_text: OnText, pieces: list[tuple[int, str]]) -> None:
    for choice, text in pieces:
        on_text(choice, text)


def _end(future: Future[GenerationResult], result: GenerationResult) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def _cut(text: str, stop: tuple[str, ...], include: bool) -> str | None:
    hits = [(at, string) for string in stop if (at := text.find(string)) >= 0]
    if not hits:
        return None
    at, string = min(hits)
    return text[: at + len(string)] if include else text[:at]
