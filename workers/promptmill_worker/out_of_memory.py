"""What happens when a step of the running batch does not fit the memory.

The batch is halved, in requests and in tokens, and all that ran begins anew with the tokens it has generated as part
of its prompt, so that no token is lost or drawn again. This repeats until the step fits. Only a request that does not
fit even alone has to leave. Later the batch grows again: a shortage may have been another program's, or over.
"""

from __future__ import annotations

import gc
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["MemoryGuard", "give_memory_back", "is_out_of_memory"]

log = logging.getLogger(__name__)

#: After so many steps without a failure the batch doubles; each halving doubles that number, so growing in vain
#: becomes rare.
GROWS_AFTER_STEPS = 1_000

#: A prompt is read in pieces of at least so many tokens, where memory is short.
SMALLEST_STEP_TOKENS = 64

#: What allocators without an exception of their own say (torch on a CPU, MPS, CUDA itself, cuBLAS), and the loop when
#: the cache is full.
_SAID = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "No requests can be scheduled and no requests can be offloaded",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, or the cache, ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def give_memory_back() -> None:
    """Frees what nothing refers to any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class MemoryGuard:
    """Stands around each step of transformers' loop, on the loop's thread.

    Args:
        manager: Prepared, not yet started.
        on_resized: Told the most requests in one step when that has changed.
        on_hopeless: Told the id of a request that does not fit even alone; it is taken out of the batch.
    """

    def __init__(self, manager: Any, on_resized: Callable[[int], None], on_hopeless: Callable[[str], None]) -> None:
        self._manager = manager
        self._step = manager._generation_loop_body
        self._on_resized = on_resized
        self._on_hopeless = on_hopeless
        self._full = _size(manager.batch_processor)
        self._patience_steps = GROWS_AFTER_STEPS
        #: The step after which the batch may double; never, while it has its full size.
        self._grows_at = math.inf

    def install(self) -> None:
        """Puts itself in the place of the loop's step."""
        self._manager._generation_loop_body = self._guarded_step

    def _guarded_step(self, processor: Any, bootstrapping: bool) -> bool:
        counted = self._manager.current_batch
        # So that it stays empty if memory runs out before a step is put together.
        processor.inputs_and_outputs.requests_in_batch = []
        try:
            goes_on = bool(self._step(processor, bootstrapping))
        except Exception as error:
            # A step that was counted is being handed out, and can't be taken back.
            handed_out = self._manager.current_batch > counted
            if handed_out or not is_out_of_memory(error) or not processor.has_pending_requests():
                raise
        else:
            if self._manager.current_batch >= self._grows_at:
                self._grow(processor)
            return goes_on
        # Only now is the error gone, whose traceback holds the tensors of the failed step.
        give_memory_back()
        self._make_room(processor)
        return True

    def _make_room(self, processor: Any) -> None:
        scheduler = processor.scheduler
        step = {
            future.state.request_id: future.query_length for future in processor.inputs_and_outputs.requests_in_batch
        }
        # Without a step the cache is full: of what runs, or of the first in line.
        request_ids = list(step or scheduler.active_requests or [next(iter(scheduler.waiting_requests))])
        tokens = sum(step.values())
        _put_back(scheduler)
        smaller = _smaller(_size(processor), len(request_ids))
        if smaller == _size(processor) or (len(request_ids) == 1 and tokens <= SMALLEST_STEP_TOKENS):
            self._give_up(processor, request_ids[0])
            return
        self._grows_at = self._manager.current_batch + self._patience_steps
        self._patience_steps *= 2
        self._resize(processor, *smaller)
        log.warning(
            "out of memory in a step of %d requests and %d tokens: from now on at most %d and %d",
            *(len(request_ids), tokens, *smaller),
        )

    def _give_up(self, processor: Any, request_id: str) -> None:
        processor.scheduler.set_request_cancellation(request_id)
        # All the halving may have been for the sake of this one. If not, it starts over.
        self._patience_steps, self._grows_at = GROWS_AFTER_STEPS, math.inf
        self._resize(processor, *self._full)
        log.warning("out of memory with a single request: it failed; the batch is back at %d requests", self._full[0])
        self._on_hopeless(request_id)

    def _grow(self, processor: Any) -> None:
        larger = [min(full, 2 * now) for full, now in zip(self._full, _size(processor), strict=True)]
        at_full_size = tuple(larger) == self._full
        self._grows_at = math.inf if at_full_size else self._manager.current_batch + self._patience_steps
        self._resize(processor, *larger)
        log.info("memory has sufficed for a while: now at most %d requests and %d tokens in a step", *larger)

    def _resize(self, processor: Any, requests: int, tokens: int) -> None:
        processor.scheduler.max_requests_per_batch = requests
        processor.max_batch_tokens = tokens
        self._on_resized(requests)


def _size(processor: Any) -> tuple[int, int]:
    """The most requests, and the most tokens, in one step."""
    return processor.scheduler.max_requests_per_batch, processor.max_batch_tokens


def _smaller(size: tuple[int, int], requests: int) -> tuple[int, int]:
    """Half of ``size``, or of the number of requests that did not fit."""
    fewer = max(1, min(size[0], requests) // 2)
    return fewer, min(size[1], max(SMALLEST_STEP_TOKENS, fewer, size[1] // 2))


def _put_back(scheduler: Any) -> None:
    """Puts all that runs back in front of what waits, the newest first: it most likely is what does not fit."""
    active, waiting = scheduler.active_requests, scheduler.waiting_requests
    # Where scheduling itself was interrupted, these are not yet in step with each other.
    rest = [name for name in scheduler.waiting_requests_order if name in waiting and name not in active]
    running = sorted(active.values(), key=lambda state: state.created_time, reverse=True)
    for state in running:
        again = state.create_equivalent_initial_request()
        again.created_time = state.created_time
        scheduler.finish_request(state.request_id)
        waiting[state.request_id] = again
    scheduler.waiting_requests_order = deque([*(state.request_id for state in running), *rest])
    # Set while requests wait for one that runs to end; now none runs.
    scheduler.block_new_requests = False
