"""The engine on transformers' continuous batching: one running batch for the requests of all threads."""

from __future__ import annotations

import itertools
import secrets
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus, OutputRouter

from promptmill.errors import EngineError, PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult, TokenLogprob
from promptmill_worker.admission import Admission, Admitted
from promptmill_worker.batching import prepared_manager
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.engine import Engine, EngineDiedError, EngineInfo, OnText
from promptmill_worker.generation import Generation, Sequence
from promptmill_worker.logprobs import TokenChances
from promptmill_worker.out_of_memory import MemoryGuard, give_memory_back
from promptmill_worker.packed_linear import pack_linear_layers
from promptmill_worker.placement import is_spread, shown_placement
from promptmill_worker.sampler import RowSampling
from promptmill_worker.settings import EngineSettings
from promptmill_worker.windowed import WindowedAnswer, submit_windows
from promptmill_worker.windows import Spans

__all__ = ["ContinuousEngine"]

#: How often the loop's thread is looked after, in seconds.
WATCH_EVERY_S = 0.2

#: How long closing waits for the step that is being computed, in seconds.
CLOSE_TIMEOUT_S = 60.0


class ContinuousEngine(Engine):
    """Generates with a model in transformers' continuous batching.

    Two threads belong to it: transformers' loop, which computes the steps and hands every new token to us, and a
    watcher, which fails what is pending when the loop has ended.

    Args:
        checkpoint: The loaded model.
        settings: How to run it.

    Raises:
        NotContinuousError: the model can't run in a continuous batch.
        ModelLoadError: its cache doesn't fit the memory.
        InvalidSettingError: ``max_model_len`` is beyond the model's context.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self._tokenizer = checkpoint.tokenizer
        if not is_spread(checkpoint.model):
            pack_linear_layers(checkpoint.model)
        self._manager, context_tokens, cache_tokens = prepared_manager(
            checkpoint, settings, _Router(self._on_output, self._on_refused)
        )
        model = checkpoint.model
        self.info = EngineInfo(
            model=settings.model,
            engine="transformers",
            device=shown_placement(model),
            precision=checkpoint.precision,
            attention=model.config._attn_implementation,
            context_tokens=context_tokens,
            cache_tokens=cache_tokens,
            max_batch=self._manager.continuous_batching_config.max_requests_per_batch,
            weights_bytes=model.get_memory_footprint(),
            parameters=model.num_parameters(),
            chat_template=bool(checkpoint.tokenizer.chat_template),
        )
        self._admission = Admission(
            checkpoint.tokenizer,
            checkpoint.end_ids,
            model.get_input_embeddings().num_embeddings,
            min(context_tokens, cache_tokens),
        )
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._sequences: dict[str, Sequence] = {}
        self._tokens = 0
        self._generations: dict[Future[GenerationResult], Generation] = {}
        self._failure: BaseException | None = None
        self._closed = False
        self._stopped = threading.Event()
        MemoryGuard(self._manager, self._on_resized, self._on_hopeless).install()
        with torch.inference_mode():  # the loop's thread takes over the mode of the one that starts it
            self._manager.start()
        self._watcher = threading.Thread(target=self._watch, name="promptmill-engine-watcher", daemon=True)
        self._watcher.start()

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """See ``Engine.submit``; the prompt is tokenised in the calling thread."""
        if self._closed or self._failure is not None:
            return _failed(self._died())
        if request.sampling.window_tokens is not None:
            return submit_windows(self, request, on_text)
        try:
            generation = self._generation(request, self._admission.admit(request), on_text)
        except PromptmillError as error:
            return _failed(error)
        except Exception as error:  # whatever a tokenizer raises concerns this prompt alone
            return _failed(EngineError(f"the prompt could not be tokenised: {type(error).__name__}"))
        with self._lock:
            if self._closed or self._failure is not None:  # while we tokenised
                return _failed(self._died())
            self._generations[generation.future] = generation
            self._sequences.update((sequence.name, sequence) for sequence in generation.sequences)
        generation.future.add_done_callback(partial(self._on_done, generation))
        self._add_to_batch(generation)
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
    def cache_used(self) -> float:
        """See ``Engine.cache_used``."""
        processor = self._manager.batch_processor
        return 0.0 if processor is None else round(1.0 - processor.cache.compute_free_capacity(), 4)

    @property
    def steps(self) -> int:
        """How many steps of the model the loop has computed."""
        return int(getattr(self._manager, "current_batch", 0))

    @property
    def failure(self) -> BaseException | None:
        """See ``Engine.failure``; closing is no failure."""
        return self._failure

    def close(self) -> None:
        """See ``Engine.close``; waits for the step that is being computed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._manager.stop(hard_stop=True, timeout=CLOSE_TIMEOUT_S)
        self._stopped.set()
        self._watcher.join()
        self._manager.model = None
        give_memory_back()

    def _generation(self, request: GenerationRequest, admitted: Admitted, on_text: OnText | None) -> Generation:
        decode = partial(
            self._tokenizer.decode,
            skip_special_tokens=request.sampling.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return Generation(request, admitted, self.info.model, decode, str(next(self._names)), on_text)

    def _add_to_batch(self, generation: Generation) -> None:
        sampling, admitted = generation.request.sampling, generation.admitted
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        for sequence in generation.sequences:
            row = RowSampling.of(sampling, admitted, seed, sequence.index)
            # None comes back from a loop that has just ended; the watcher then fails this generation.
            self._manager.add_request(
                admitted.prompt_ids,
                request_id=sequence.name,
                max_new_tokens=admitted.max_tokens,
                eos_token_id=sorted(admitted.end_ids),
                streaming=True,
                row=row,
            )

    def _on_output(self, output: Any) -> None:
        # On the loop's thread, once a step for every sequence. Nothing may escape: it would end the loop.
        sequence = self._sequences.get(output.request_id)
        if sequence is None:
            if not output.is_finished():  # cancelled before the loop knew it, so the loop missed that
                self._manager.cancel_request(output.request_id)
            return
        generation = sequence.generation
        generation.saw_token()
        self._tokens += 1
        try:
            choice = sequence.advance(output.generated_tokens, output.is_finished(), self._logprob(output))
        except Exception as error:  # whatever a tokenizer raises concerns this text alone
            generation.fail(EngineError(f"the text could not be decoded: {type(error).__name__}"))
            return
        if choice is None:
            return
        self._sequences.pop(sequence.name, None)
        if not output.is_finished():
            self._manager.cancel_request(sequence.name)
        if not generation.end(choice) and self.on_choice is not None:
            self.on_choice(generation.future)

    def _logprob(self, output: Any) -> TokenLogprob | None:
        chances: TokenChances | None = self._manager.logit_processor.chances(output.request_id)
        if chances is None:
            return None
        return chances.shown(output.generated_tokens[-1], partial(self._tokenizer.decode, skip_special_tokens=False))

    def _on_refused(self, request_id: str, error: BaseException) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.generation.fail(EngineError(f"transformers refused the request: {type(error).__name__}"))

    def _on_resized(self, max_batch: int) -> None:
        self.info = self.info.model_copy(update={"max_batch": max_batch})

    def _on_hopeless(self, request_id: str) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.generation.fail(EngineError(_too_large(sequence.generation.admitted)))

    def _on_done(self, generation: Generation, future: Future[GenerationResult]) -> None:
        # On whatever thread ended or cancelled the future: takes the sequences that still run out of the batch.
        with self._lock:
            self._generations.pop(future, None)
            rest = [s for s in generation.sequences if self._sequences.pop(s.name, None) is not None]
        for sequence in rest:
            self._manager.cancel_request(sequence.name)

    def _watch(self) -> None:
        manager = self._manager
        while manager.is_running() and not self._stopped.wait(WATCH_EVERY_S):
            # The loop's thread is no daemon: a program that forgot to close, or died of an exception, would hang.
            if not threading.main_thread().is_alive() and not self._generations:
                manager.stop(hard_stop=True, block=False)
        with self._lock:
            if not self._closed:
                cause = manager.background_thread_status.fatal_error
                self._failure = cause or RuntimeError("the generation loop ended without an error")
            pending = list(self._generations.values())
            self._sequences.clear()
        for generation in pending:
            generation.fail(self._died())

    def _died(self) -> EngineDiedError:
        if self._failure is None:
            return EngineDiedError("the engine is closed")
        return EngineDiedError(f"the engine's loop ended: {type(self._failure).__name__}: start the worker anew")


class _Router(OutputRouter):  # type: ignore[misc]  # transformers is untyped
    """Hands outputs to us on the loop's thread, where transformers would put them into a queue."""

    def __init__(self, on_output: Any, on_refused: Any) -> None:
        super().__init__()
        self._on_output = on_output
        self._on_refused = on_refused
        #: Set with the manager; tells whether a failure is one request's or the loop's own.
        self.status: BackgroundThreadStatus | None = None

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self._on_output(output)

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        if self.status is None or self.status.can_accept_new_requests() is None:
            self._on_refused(state.request_id, error)


def _too_large(admitted: Admitted) -> str:
    return (
        f"a prompt of {len(admitted.prompt_ids):,} tokens with up to {admitted.max_tokens:,} to generate does not fit "
        "the worker's memory even alone: shorten it or lower max_tokens, or start the worker with a smaller "
        "max_model_len or max_batch (their cache takes memory), with quantization, or with a smaller model"
    )


def _failed(error: PromptmillError) -> Future[GenerationResult]:
    future: Future[GenerationResult] = Future()
    future.set_exception(error)
    return future
