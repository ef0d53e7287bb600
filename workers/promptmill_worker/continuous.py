"""The engine on transformers' continuous batching: one running batch for the requests of all threads."""

from __future__ import annotations

import secrets
import threading
from functools import partial
from typing import Any

import torch
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus, OutputRouter

from promptmill.errors import EngineError
from promptmill.protocol import TokenLogprob
from promptmill_worker.admission import Admission
from promptmill_worker.batching import prepared_manager
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.engine import EngineInfo
from promptmill_worker.generation import Generation, Sequence
from promptmill_worker.logprobs import TokenChances
from promptmill_worker.model_engine import ModelEngine, too_large
from promptmill_worker.out_of_memory import MemoryGuard, give_memory_back
from promptmill_worker.packed_linear import pack_linear_layers
from promptmill_worker.placement import is_spread, shown_placement
from promptmill_worker.sampler import RowSampling
from promptmill_worker.settings import EngineSettings

__all__ = ["ContinuousEngine"]

#: How often the loop's thread is looked after, in seconds.
WATCH_EVERY_S = 0.2

#: How a worker takes less memory.
LESS_MEMORY = "with a smaller max_model_len or max_batch (their cache takes memory), with quantization"

#: How long closing waits for the step that is being computed, in seconds.
CLOSE_TIMEOUT_S = 60.0


class ContinuousEngine(ModelEngine):
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
        longest = min(context_tokens, cache_tokens)
        super().__init__(
            checkpoint.tokenizer,
            Admission(checkpoint.tokenizer, checkpoint.end_ids, model.get_input_embeddings().num_embeddings, longest),
        )
        self._sequences: dict[str, Sequence] = {}
        self._stopped = threading.Event()
        MemoryGuard(self._manager, self._on_resized, self._on_hopeless).install()
        with torch.inference_mode():  # the loop's thread takes over the mode of the one that starts it
            self._manager.start()
        self._watcher = threading.Thread(target=self._watch, name="promptmill-engine-watcher", daemon=True)
        self._watcher.start()

    @property
    def cache_used(self) -> float:
        """See ``Engine.cache_used``."""
        processor = self._manager.batch_processor
        return 0.0 if processor is None else round(1.0 - processor.cache.compute_free_capacity(), 4)

    @property
    def steps(self) -> int:
        """How many steps of the model the loop has computed."""
        return int(getattr(self._manager, "current_batch", 0))

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

    def _take(self, generation: Generation) -> None:
        """See ``ModelEngine._take``."""
        sampling, admitted = generation.request.sampling, generation.admitted
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        for sequence in generation.sequences:
            self._sequences[sequence.name] = sequence
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
            sequence.generation.fail(too_large(sequence.generation.admitted, LESS_MEMORY))

    def _leave(self, generation: Generation) -> None:
        """See ``ModelEngine._leave``; takes the sequences that still run out of the batch."""
        super()._leave(generation)
        for sequence in generation.sequences:
            if self._sequences.pop(sequence.name, None) is not None:
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
            self._sequences.clear()
        self._fail_pending()


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
