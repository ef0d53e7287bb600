"""The engine for models that can't run in a continuous batch: batches of ``generate()``, one after another."""

from __future__ import annotations

import atexit
import logging
import threading
from functools import partial

import torch
from transformers import GenerationConfig

from promptmill.errors import ModelLoadError
from promptmill.protocol import TokenLogprob
from promptmill_worker.admission import Admission
from promptmill_worker.batch_limit import BatchLimit
from promptmill_worker.batching import context_length
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.engine import EngineInfo
from promptmill_worker.generation import Generation
from promptmill_worker.model_engine import ModelEngine, too_large
from promptmill_worker.out_of_memory import give_memory_back, is_out_of_memory
from promptmill_worker.padding import padding_is_exact
from promptmill_worker.placement import shown_placement
from promptmill_worker.prefill_progress import watch_layers
from promptmill_worker.settings import EngineSettings
from promptmill_worker.static_batch import run_batch
from promptmill_worker.static_queue import RowQueue
from promptmill_worker.static_row import Row, rows_of

__all__ = ["StaticEngine"]

log = logging.getLogger(__name__)

#: How long closing waits for the step that is being computed, in seconds.
CLOSE_TIMEOUT_S = 60.0


class StaticEngine(ModelEngine):
    """Generates with a model's own ``generate()``, for up to ``max_batch`` requests at a time.

    One thread belongs to it. A request that comes while a batch runs waits for its end; one that ends does not.

    Args:
        checkpoint: The loaded model; its generation defaults are taken from it.
        settings: How to run it.
        reason: Why the model does not run in a continuous batch.

    Raises:
        ModelLoadError: the model can't generate.
        InvalidSettingError: ``max_model_len`` is beyond the model's context.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings, reason: str) -> None:
        self._model, tokenizer = checkpoint.model, checkpoint.tokenizer
        longest = context_length(checkpoint, settings)
        # Or transformers would add the model's own penalties to every request.
        self._model.generation_config = GenerationConfig()
        self._pad_id = tokenizer.pad_token_id or 0
        #: Whether only prompts of the same length may share a batch.
        self._one_length = not self._tried_padding(settings)
        self.info = EngineInfo(
            model=settings.model,
            engine="static batches",
            reason=reason,
            device=shown_placement(self._model),
            precision=checkpoint.precision,
            context_tokens=longest,
            max_batch=settings.max_batch,
            weights_bytes=self._model.get_memory_footprint(),
            parameters=self._model.num_parameters(),
            chat_template=bool(tokenizer.chat_template),
        )
        vocabulary = self._model.get_input_embeddings().num_embeddings
        super().__init__(tokenizer, Admission(tokenizer, checkpoint.end_ids, vocabulary, longest))
        self._limit = BatchLimit(settings.max_batch)
        self._steps = 0
        self._queue = RowQueue()
        self._unwatch = watch_layers(self._model, self._on_progress)
        self._thread = threading.Thread(target=self._work, name="promptmill-static-engine", daemon=True)
        self._thread.start()
        # A program that forgot to close would abort while this thread computes.
        atexit.register(self.close)

    @property
    def steps(self) -> int:
        """How many steps of the model were computed, and a few more where one takes long."""
        return self._steps

    def close(self) -> None:
        """See ``Engine.close``; waits for the step that is being computed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._queue.close()
        self._thread.join(CLOSE_TIMEOUT_S)
        self._fail_pending()
        self._unwatch()
        self._model = None
        give_memory_back()

    def _take(self, generation: Generation) -> None:
        """See ``ModelEngine._take``; the rows of one that is cancelled are seen to be dead at the next step."""
        self._queue.put(rows_of(generation))

    def _tried_padding(self, settings: EngineSettings) -> bool:
        try:
            with torch.inference_mode():
                return padding_is_exact(self._model, self._pad_id)
        except Exception as error:  # the first that this model generates: anything may come
            raise ModelLoadError(
                f"model {settings.model!r} is loaded, but can't generate: {type(error).__name__}: {error}"
            ) from error

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while rows := self._queue.take(self._limit.now, self._one_length):
                self._run(rows)
        except Exception as error:
            # Without its words: they may quote a prompt.
            log.error("a step of the static engine failed (%s)", type(error).__name__)
            with self._lock:
                self._failure = error
        self._fail_pending()

    def _run(self, rows: list[Row]) -> None:
        try:
            run_batch(self._model, rows, self._pad_id, partial(self._on_tokens, rows))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            self._limit.did_fit()
            self._show_limit()
            return
        # Only now is the error gone, whose traceback holds the tensors of the failed step.
        give_memory_back()
        self._make_room(rows)

    def _make_room(self, rows: list[Row]) -> None:
        if self._limit.did_not_fit(len(rows)):
            log.warning("out of memory in a batch of %d: from now on at most %d", len(rows), self._limit.now)
            self._queue.put_back(rows)
        else:
            log.warning("out of memory with a single request: it failed")
            generation = rows[0].sequence.generation
            generation.fail(too_large(generation.admitted, "with quantization"))
        self._show_limit()

    def _show_limit(self) -> None:
        if self.info.max_batch != self._limit.now:
            self.info = self.info.model_copy(update={"max_batch": self._limit.now})

    def _on_tokens(self, rows: list[Row], token_ids: list[int]) -> bool:
        self._on_progress()
        for row, token_id in zip(rows, token_ids, strict=True):
            if row.live:
                self._tokens += 1
                row.add(token_id, self._logprob(row, token_id))
        return not self._closed and any(row.live for row in rows)

    def _on_progress(self) -> None:
        self._steps += 1

    def _logprob(self, row: Row, token_id: int) -> TokenLogprob | None:
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        return None if row.chances is None else row.chances.shown(token_id, decode)
