"""What the engines that run a model have in common: requests come in as text, and are answered once."""

from __future__ import annotations

import itertools
import threading
from abc import abstractmethod
from concurrent.futures import Future
from functools import partial
from typing import Any

from promptmill.errors import EngineError, PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker.admission import Admission, Admitted
from promptmill_worker.engine import Engine, EngineDiedError, OnText, failed
from promptmill_worker.generation import Generation
from promptmill_worker.windowed import WindowedAnswer, submit_windows
from promptmill_worker.windows import Spans

__all__ = ["ModelEngine", "too_large"]


class ModelEngine(Engine):
    """Tokenises requests, and keeps account of those that have not ended.

    Args:
        tokenizer: The model's.
        admission: Checks requests, and makes tokens of them.
    """

    def __init__(self, tokenizer: Any, admission: Admission) -> None:
        self._tokenizer = tokenizer
        self._admission = admission
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._tokens = 0
        self._generations: dict[Future[GenerationResult], Generation] = {}
        self._failure: BaseException | None = None
        self._closed = False

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """See ``Engine.submit``; the prompt is tokenised in the calling thread."""
        if request.sampling.window_tokens is not None:
            return submit_windows(self, request, on_text)
        try:
            generation = self._generation(request, self._admission.admit(request), on_text)
        except PromptmillError as error:
            return failed(error)
        except Exception as error:  # whatever a tokenizer raises concerns this prompt alone
            return failed(EngineError(f"the prompt could not be tokenised: {type(error).__name__}"))
        with self._lock:
            if self._closed or self._failure is not None:
                return failed(self._died())
            self._generations[generation.future] = generation
            self._take(generation)
        generation.future.add_done_callback(lambda _: self._leave(generation))
        return generation.future

    def partial_text(self, future: Future[GenerationResult]) -> str:
        """See ``Engine.partial_text``; decoded in the calling thread."""
        if isinstance(future, WindowedAnswer):
            return future.partial_text()
        generation = self._generations.get(future)
        return "" if generation is None or future.done() else generation.partial_text()

    def token_spans(self, text: str) -> Spans:
        """See ``Engine.token_spans``."""
        return self._admission.token_spans(text)

    @property
    def running(self) -> int:
        """See ``Engine.running``."""
        return len(self._generations)

    @property
    def tokens(self) -> int:
        """See ``Engine.tokens``."""
        return self._tokens

    @property
    def failure(self) -> BaseException | None:
        """See ``Engine.failure``; closing is no failure."""
        return self._failure

    @abstractmethod
    def _take(self, generation: Generation) -> None:
        """Puts a generation where it will be run, and does not wait: our lock is held."""

    def _leave(self, generation: Generation) -> None:
        """A generation has ended or was cancelled. Called on whatever thread did that."""
        with self._lock:
            self._generations.pop(generation.future, None)

    def _fail_pending(self) -> None:
        """Ends what has not ended, now that nothing runs any more."""
        with self._lock:
            pending = list(self._generations.values())
        for generation in pending:
            generation.fail(self._died())

    def _generation(self, request: GenerationRequest, admitted: Admitted, on_text: OnText | None) -> Generation:
        decode = partial(
            self._tokenizer.decode,
            skip_special_tokens=request.sampling.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return Generation(request, admitted, self.info.model, decode, str(next(self._names)), on_text)

    def _died(self) -> EngineDiedError:
        if self._failure is None:
            return EngineDiedError("the engine is closed")
        return EngineDiedError(f"the engine's loop ended: {type(self._failure).__name__}: start the worker anew")


def too_large(admitted: Admitted, remedies: str) -> EngineError:
    """The error of a request for which the memory does not suffice even if it runs alone.

    Args:
        admitted: The request.
        remedies: How else the worker may be started.
    """
    return EngineError(
        f"a prompt of {len(admitted.prompt_ids):,} tokens with up to {admitted.max_tokens:,} to generate does not fit "
        f"the worker's memory even alone: shorten it or lower max_tokens, or start the worker {remedies}, or with a "
        "smaller model"
    )
