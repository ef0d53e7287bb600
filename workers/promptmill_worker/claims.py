"""Working off one claim: its prompts go into the engine, its answers into the ledger."""

from __future__ import annotations

import logging
import queue
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from promptmill.errors import PromptmillError, TaskFailedError
from promptmill.ledger import Claim, Ledger
from promptmill.protocol import (
    WIRE_VERSION,
    GenerationRequest,
    GenerationResult,
    answer_to_wire,
    requests_from_wire,
)
from promptmill_worker.counters import Counters
from promptmill_worker.engine import Engine, EngineDiedError
from promptmill_worker.room import Places

__all__ = ["Bench", "ClaimWork"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What every claim of this worker is worked off with."""

    engine: Engine
    ledger: Ledger
    counters: Counters
    worker_name: str
    served_name: str
    #: Called when the engine has died: the process has to end.
    on_engine_died: Callable[[], None]


@dataclass(frozen=True)
class _Done:
    position: int
    future: Future[GenerationResult]


class _Lost:
    """The lease is gone."""


class _PutBack:
    """The worker stops."""


class ClaimWork:
    """One claim in work. ``run`` belongs to a pool thread; ``lose`` and ``put_back`` may be called from any other."""

    def __init__(self, bench: Bench, claim: Claim, places: Places) -> None:
        self.bench = bench
        self.claim = claim
        self._places = places
        #: All that concerns this claim arrives here, so that one thread does all of its work.
        self._inbox: queue.SimpleQueue[_Done | _Lost | _PutBack] = queue.SimpleQueue()
        self._running: dict[int, Future[GenerationResult]] = {}
        #: What was sent, kept until the broker says that it misses nothing.
        self._sent: dict[int, tuple[int, bool, bytes]] = {}
        self._attempts = dict(zip(claim.positions, claim.attempts, strict=True))

    def lose(self) -> None:
        """See ``leases.Leased``."""
        self._inbox.put(_Lost())

    def put_back(self) -> None:
        """See ``leases.Leased``."""
        self._inbox.put(_PutBack())

    def run(self) -> bool:
        """Works until all prompts of the claim are answered; False if they had to be left to others."""
        try:
            self._start()
            while self._running:
                batch = self._wait()
                if batch is None:
                    return False
                self._send({done.position: self._outcome(done) for done in batch})
            return True
        finally:
            self._give_up()  # nothing, unless something went wrong

    def _start(self) -> None:
        requests = self._requests()
        if isinstance(requests, PromptmillError):
            self._send(dict.fromkeys(self.claim.positions, requests))
            return
        for position in self.claim.positions:
            self._running[position] = self.bench.engine.submit(requests[position])
        # Callbacks after all are in: answers that are there by then are sent together.
        for position, future in list(self._running.items()):
            future.add_done_callback(partial(self._on_done, position))

    def _on_done(self, position: int, future: Future[GenerationResult]) -> None:
        self._inbox.put(_Done(position, future))

    def _requests(self) -> list[GenerationRequest] | PromptmillError:
        if self.claim.version != WIRE_VERSION:
            return TaskFailedError(
                f"the task was written in version {self.claim.version} of the protocol, worker "
                f"{self.bench.worker_name} reads version {WIRE_VERSION}: update the older of the two"
            )
        try:
            return requests_from_wire(self.claim.requests)
        except PromptmillError as error:
            return error

    def _wait(self) -> list[_Done] | None:
        """All that is done by now, at least one; None if the claim has to be given up."""
        batch: list[_Done] = []
        message: _Done | _Lost | _PutBack | None = self._inbox.get()
        while message is not None:
            if not isinstance(message, _Done) or isinstance(_failure(message.future), EngineDiedError):
                if batch:  # what is answered is sent first
                    self._inbox.put(message)
                    return batch
                self._leave(message)
                return None
            batch.append(message)
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                message = None
        return batch

    def _leave(self, why: _Done | _Lost | _PutBack) -> None:
        self._give_up()
        if isinstance(why, _Lost):
            log.warning("lost the lease of %s; its work goes on elsewhere", self.claim.record_id)
            return
        prompts = self.bench.ledger.put_back(self.claim.record_id, self.claim.token)
        log.info("put %d prompts of %s back into the queue", prompts, self.claim.record_id)
        if isinstance(why, _Done):
            self.bench.on_engine_died()

    def _give_up(self) -> None:
        for future in self._running.values():
            future.cancel()
        self._places.free(len(self._running))
        self._running.clear()

    def _outcome(self, done: _Done) -> GenerationResult | PromptmillError:
        del self._running[done.position]
        error = _failure(done.future)
        if error is None:
            return done.future.result()
        if isinstance(error, PromptmillError):
            return error
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.error("prompt %d of %s: %s\n%s", done.position, self.claim.record_id, type(error).__name__, trace)
        # Not the error's own text, here or in the log: it may quote the prompt.
        return TaskFailedError(f"the engine failed with {type(error).__name__}; the worker's log says more")

    def _send(self, answers: dict[int, GenerationResult | PromptmillError]) -> None:
        for position, answer in answers.items():
            self.bench.counters.count(answer)
            self._sent[position] = (position, isinstance(answer, PromptmillError), self._signed(position, answer))
        missing: Iterable[int] = answers
        while missing:
            sent = [self._sent[position] for position in missing]
            missing = self.bench.ledger.finish(self.claim.record_id, self.claim.token, sent, last=not self._running)
        self._places.free(len(answers))

    def _signed(self, position: int, answer: GenerationResult | PromptmillError) -> bytes:
        """The answer for the wire, with what only the worker knows."""
        return answer_to_wire(
            answer,
            queued_s=self.claim.queued_s,
            model=self.bench.served_name,
            worker=self.bench.worker_name,
            attempts=self._attempts[position],
        )


def _failure(future: Future[GenerationResult]) -> BaseException | None:
    return None if future.cancelled() else future.exception()
