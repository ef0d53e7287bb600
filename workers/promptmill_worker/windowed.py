"""A request over a long text, answered window by window."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from promptmill.errors import EngineError, InvalidRequestError, PromptmillError, PromptTooLongError
from promptmill.protocol import Choice, GenerationRequest, GenerationResult, Timings, Usage
from promptmill_worker.engine import EngineInfo, OnText, failed
from promptmill_worker.long_text import long_text, with_long_text
from promptmill_worker.windows import Spans, Window, cut_windows

__all__ = ["WindowedAnswer", "submit_windows"]

#: The most windows of one request: its answer is one, and is lost as a whole with its worker.
MAX_WINDOWS = 1_000

#: Seeds are below this.
_SEEDS = 2**63


class Windowed(Protocol):
    """What windows are answered by: an engine, or what stands before it."""

    @property
    def info(self) -> EngineInfo:
        """See ``Engine.info``."""

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """See ``Engine.submit``."""

    def partial_text(self, future: Future[GenerationResult]) -> str:
        """See ``Engine.partial_text``."""

    def token_spans(self, text: str) -> Spans:
        """See ``Engine.token_spans``."""


def submit_windows(
    engine: Windowed, request: GenerationRequest, on_text: OnText | None = None
) -> Future[GenerationResult]:
    """``Engine.submit`` for a request with ``window_tokens``: a request to the engine for each window.

    The text is cut in the calling thread.
    """
    try:
        windows = _windows(engine, request)
    except PromptmillError as error:
        return failed(error)
    except Exception as error:  # whatever a tokenizer raises concerns this prompt alone
        return failed(EngineError(f"the prompt could not be tokenised: {type(error).__name__}"))
    answer = WindowedAnswer(engine, request, windows, on_text)
    threading.Thread(target=answer.run, name="promptmill windows", daemon=True).start()
    return answer


class WindowedAnswer(Future[GenerationResult]):
    """The future of all windows: their answers in order, or the first error of one.

    No more windows than make a full batch are in the engine at once, so that requests of others get their turn.

    Args:
        engine: Generates for each window.
        request: What was asked.
        windows: The text of ``request``, cut.
        on_text: See ``Engine.submit``; a window is a choice.
    """

    def __init__(
        self, engine: Windowed, request: GenerationRequest, windows: list[Window], on_text: OnText | None = None
    ) -> None:
        super().__init__()
        self._engine = engine
        self._request = request
        self._windows = windows
        self._on_text = on_text
        self._parts: dict[int, Future[GenerationResult]] = {}
        self._results: dict[int, GenerationResult] = {}
        self._room = threading.Semaphore(max(1, engine.info.max_batch))
        self._lock = threading.Lock()
        self._is_ending = False
        self._submitted_at = time.perf_counter()
        self._first_token_at = float("inf")
        self.add_done_callback(self._stop)

    def run(self) -> None:
        """Submits window after window; for a thread of its own, as it waits for room."""
        try:
            for number in range(len(self._windows)):
                self._room.acquire()
                if self.done():
                    return
                self._submit(number)
        except Exception as error:  # nobody else sees it, and the answer would be waited for until the deadline
            self._end(error)

    def partial_text(self) -> str:
        """The text so far, of all windows up to the last that has begun; any thread may call it."""
        texts = []
        for number, part in list(self._parts.items()):
            result = self._results.get(number)
            texts.append(self._engine.partial_text(part) if result is None else result.text)
        return "\n".join(texts)

    @property
    def parts(self) -> list[Future[GenerationResult]]:
        """The futures of the windows that have begun to wait or run."""
        return list(self._parts.values())

    def _submit(self, number: int) -> None:
        on_text = None if self._on_text is None else partial(self._on_part_text, self._on_text, number)
        part = self._parts[number] = self._engine.submit(self._request_of(number), on_text)
        part.add_done_callback(partial(self._on_part, number))
        if self.done():  # `_stop` may not have seen it
            part.cancel()

    def _request_of(self, number: int) -> GenerationRequest:
        seed = self._request.sampling.seed
        own = {"window_tokens": None, "stride_tokens": None, "seed": None if seed is None else (seed + number) % _SEEDS}
        request = self._request.model_copy(update={"sampling": self._request.sampling.model_copy(update=own)})
        return with_long_text(request, self._windows[number].text)

    @staticmethod
    def _on_part_text(on_text: OnText, number: int, _choice: int, piece: str) -> None:
        on_text(number, piece)

    def _on_part(self, number: int, part: Future[GenerationResult]) -> None:
        # On the engine's thread.
        self._room.release()
        if part.cancelled():
            return
        error = part.exception()
        if error is not None:
            self._end(_about(number, error))
            return
        result = part.result()
        with self._lock:
            # Its own clock began when it went into the engine.
            began_at = time.perf_counter() - result.timings.generation_s
            self._first_token_at = min(self._first_token_at, began_at + result.timings.time_to_first_token_s)
            self._results[number] = result
            is_last = len(self._results) == len(self._windows)
        if is_last:
            self._end()

    def _end(self, error: BaseException | None = None) -> None:
        with self._lock:
            was_ending, self._is_ending = self._is_ending, True
        if was_ending or not self.set_running_or_notify_cancel():
            return
        if error is None:
            self.set_result(self._joined())
        else:
            self.set_exception(error)

    def _stop(self, _: Future[GenerationResult]) -> None:
        for part in self.parts:
            part.cancel()  # and `run`, to which that gives room, sees that all is over

    def _joined(self) -> GenerationResult:
        results = [self._results[number] for number in range(len(self._windows))]
        return GenerationResult(
            model=results[0].model,
            choices=tuple(map(_choice, range(len(results)), results, self._windows)),
            usage=Usage(
                prompt_tokens=sum(result.usage.prompt_tokens for result in results),
                completion_tokens=sum(result.usage.completion_tokens for result in results),
            ),
            timings=Timings(
                time_to_first_token_s=self._first_token_at - self._submitted_at,
                generation_s=time.perf_counter() - self._submitted_at,
            ),
        )


def _windows(engine: Windowed, request: GenerationRequest) -> list[Window]:
    sampling = request.sampling
    text = long_text(request)
    window_tokens = sampling.window_tokens or 1
    stride_tokens = sampling.stride_tokens or window_tokens
    spans = engine.token_spans(text)
    windows = cut_windows(text, spans, window_tokens, stride_tokens)
    if len(windows) > MAX_WINDOWS:
        raise InvalidRequestError(
            f"window_tokens {window_tokens:,} and stride_tokens {stride_tokens:,} make {len(windows):,} windows of a "
            f"text of {len(spans):,} tokens, at most {MAX_WINDOWS:,} are allowed: make them larger, or send the text "
            "in several requests"
        )
    return windows


def _choice(number: int, result: GenerationResult, window: Window) -> Choice:
    return result.choices[0].model_copy(update={"index": number, "window": (window.start, window.end)})


def _about(number: int, error: BaseException) -> BaseException:
    """The error of a part as the caller, who sent no parts, understands it."""
    if not isinstance(error, PromptTooLongError):
        return error
    return PromptTooLongError(
        f"window {number} and what is around it have {error.prompt_tokens:,} tokens, at most {error.limit_tokens:,} "
        "fit this worker's context: set a smaller window_tokens",
        error.prompt_tokens,
        error.limit_tokens,
    )
