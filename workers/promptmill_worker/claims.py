"""Working off one claim: its prompts go into the engine, its answers into the ledger."""

from __future__ import annotations

import logging
import queue
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import redis

from promptmill.errors import InvalidRequestError, PromptmillError, TaskExpiredError, TaskFailedError
from promptmill.ledger import Claim, Ledger
from promptmill.protocol import (
    WIRE_VERSION,
    GenerationRequest,
    GenerationResult,
    answer_to_wire,
    requests_from_wire,
)
from promptmill_worker.claim_news import Done, Lost, Message, Overdue, PutBack, Settled, Start
from promptmill_worker.counters import Counters
from promptmill_worker.engine import Engine, EngineDiedError, OnText, failed
from promptmill_worker.room import Places
from promptmill_worker.stream_writer import StreamWriter
from promptmill_worker.tally import Tally
from promptmill_worker.waiting_room import WaitingRoom

__all__ = ["Bench", "ClaimWork"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What every claim of this worker is worked off with."""

    engine: Engine
    #: The way into the engine.
    waiting_room: WaitingRoom
    ledger: Ledger
    counters: Counters
    streams: StreamWriter
    worker_name: str
    served_name: str
    #: Called when the engine has died: the process has to end.
    on_engine_died: Callable[[], None]


class ClaimWork:
    """One claim in work. ``run`` belongs to a pool thread; the other public methods may be called from any.

    Args:
        bench: What it is worked off with.
        claim: What to work off.
        places: Freed prompt by prompt.
    """

    def __init__(self, bench: Bench, claim: Claim, places: Places) -> None:
        self.bench = bench
        self.claim = claim
        self._places = places
        #: What was answered here.
        self.tally = Tally()
        #: All that concerns this claim arrives here, so that one thread does all of its work.
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        #: Positions without an answer, and what the engine makes of them once it has begun.
        self._left: dict[int, Future[GenerationResult] | None] = dict.fromkeys(claim.positions)
        #: What was sent, kept until the broker says that it misses nothing.
        self._sent: dict[int, tuple[int, bool, bytes]] = {}
        self._attempts = dict(zip(claim.positions, claim.attempts, strict=True))
        self._deadline_at = time.monotonic() + claim.time_left_s

    def begin(self) -> None:
        """Lets the prompts into the engine."""
        self._inbox.put(Start())

    def settle(self, positions: tuple[int, ...]) -> None:
        """See ``leases.Leased``."""
        self._inbox.put(Settled(positions))

    def lease_lost(self) -> None:
        """See ``leases.Leased``."""
        self._inbox.put(Lost())

    def put_back(self) -> None:
        """See ``leases.Leased``."""
        self._inbox.put(PutBack())

    def run(self) -> bool:
        """Works until all prompts of the claim are answered; False if they had to be left to others."""
        try:
            while self._left:
                news = self._news()
                self._answer(news)
                for message in news if self._left else ():
                    if isinstance(message, Start):
                        self._start()
                    elif isinstance(message, Lost | PutBack) or _is_engine_death(message):
                        self._leave(message)
                        return False
            return True
        except redis.RedisError:  # the worker ends, and the broker is away: the lease runs out
            raise
        except Exception as error:  # ours, and no death of a worker: the others would be suspected
            self._send(dict.fromkeys(self._left, self._failed(error)))
            return True
        finally:
            self._give_up()  # nothing, unless something went wrong
            self.bench.streams.close(self.claim)

    def _news(self) -> list[Message]:
        """All that has arrived, at least one."""
        try:
            news = [self._inbox.get(timeout=max(0.0, self._deadline_at - time.monotonic()))]
        except queue.Empty:
            return [Overdue()]
        while not self._inbox.empty():
            news.append(self._inbox.get())
        return news

    def _start(self) -> None:
        if self.bench.engine.failure is not None:  # it died before these were in it
            self.put_back()
            return
        if self.claim.alone and not self.bench.ledger.start(self.claim.record_id, self.claim.token):
            self.lease_lost()
            return
        requests = self._requests()
        if isinstance(requests, PromptmillError):
            self._send(dict.fromkeys(self._left, requests))
            return
        futures = {
            position: self._submit(request, position, self.claim.turn + index)
            for index, (position, request) in enumerate(requests.items())
            if position in self._left
        }
        self._left.update(futures)
        # Callbacks after all are in: answers that are there by then are sent together.
        for position, future in futures.items():
            future.add_done_callback(partial(self._on_done, position))

    def _submit(
        self, request: GenerationRequest | InvalidRequestError, position: int, turn: float
    ) -> Future[GenerationResult]:
        if isinstance(request, InvalidRequestError):
            return failed(request)
        on_text = self._on_text(position, request)
        return self.bench.waiting_room.submit(request, on_text, self.claim.priority, turn)

    def _on_text(self, position: int, request: GenerationRequest) -> OnText | None:
        if not request.stream:
            return None
        repeats = request.sampling.temperature == 0 or request.sampling.seed is not None
        return self.bench.streams.open(self.claim, position, repeats)

    def _on_done(self, position: int, future: Future[GenerationResult]) -> None:
        self._inbox.put(Done(position, future))

    def _requests(self) -> dict[int, GenerationRequest | InvalidRequestError] | PromptmillError:
        """By position, in the order of the claim's; or what is wrong with all of them."""
        if self.claim.version != WIRE_VERSION:
            return TaskFailedError(
                f"the task was written in version {self.claim.version} of the protocol, worker "
                f"{self.bench.worker_name} reads version {WIRE_VERSION}: update the older of the two"
            )
        requests = requests_from_wire(self.claim.requests)
        if len(requests) != len(self.claim.positions):
            return InvalidRequestError(f"the task's record holds {len(requests)} requests for its prompts")
        return dict(zip(self.claim.positions, requests, strict=True))

    def _answer(self, news: list[Message]) -> None:
        """Sends what is answered by now, and forgets what was answered elsewhere."""
        settled = {position for message in news if isinstance(message, Settled) for position in message.positions}
        self._places.free(self._stop(settled))
        answers: dict[int, GenerationResult | PromptmillError] = {
            message.position: self._outcome(message)
            for message in news
            if isinstance(message, Done) and message.position in self._left and not _is_engine_death(message)
        }
        if any(isinstance(message, Overdue) for message in news):
            answers = {position: self._expired(future) for position, future in self._left.items()}
        if answers or (settled and not self._left):
            self._send(answers)

    def _expired(self, future: Future[GenerationResult] | None) -> TaskExpiredError:
        if future is None or not self.bench.waiting_room.has_begun(future):
            return TaskExpiredError("the task's deadline passed before it ran: give it more timeout_s")
        text = self.bench.waiting_room.partial_text(future)
        return TaskExpiredError(
            "the task's deadline passed while it ran: give it more timeout_s, or less max_tokens", text
        )

    def _leave(self, why: Message) -> None:
        died = self.bench.engine.failure is not None
        begun = {
            position
            for position, future in self._left.items()
            if future is not None and self.bench.waiting_room.has_begun(future)
        }
        innocent = [position for position in self._left if position not in begun]
        self._give_up()
        if isinstance(why, Lost):
            log.warning("lost the lease of %s; its work goes on elsewhere", self.claim.record_id)
        elif died and begun:
            self.bench.ledger.lose(self.claim.record_id, self.claim.token, "the engine died", innocent)
            self.bench.on_engine_died()
        else:
            prompts = self.bench.ledger.put_back(self.claim.record_id, self.claim.token)
            log.info("put %d prompts of %s back into the queue", prompts, self.claim.record_id)

    def _give_up(self) -> None:
        self._places.free(self._stop(set(self._left)))

    def _stop(self, positions: set[int]) -> int:
        """Waits for these prompts no longer, and takes them out of the engine if they are still in it.

        Returns:
            How many there were: that many places are to be freed.
        """
        stopped = [self._left.pop(position) for position in positions if position in self._left]
        for future in stopped:
            if future is not None:
                future.cancel()
        return len(stopped)

    def _outcome(self, done: Done) -> GenerationResult | PromptmillError:
        error = _failure(done.future)
        if error is None:
            return done.future.result()
        if isinstance(error, PromptmillError):
            return error
        return self._failed(error)

    def _failed(self, error: BaseException) -> TaskFailedError:
        """``error``, without its own text, here or in the log: it may quote the prompt."""
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.error("prompts of %s: %s\n%s", self.claim.record_id, type(error).__name__, trace)
        return TaskFailedError(f"the worker failed with {type(error).__name__}; its log says more")

    def _send(self, answers: dict[int, GenerationResult | PromptmillError]) -> None:
        for position, answer in answers.items():
            self.bench.counters.count(answer, self._queued_s(position))
            self.tally.count(answer)
            self._sent[position] = (position, isinstance(answer, PromptmillError), self._signed(position, answer))
        places = self._stop(set(answers))
        due = list(answers)
        while True:
            sent = [self._sent[position] for position in due]
            missing = self.bench.ledger.finish(self.claim.record_id, self.claim.token, sent, last=not self._left)
            due = [position for position in missing if position in self._sent]
            if not due:
                break
        self._places.free(places)

    def _queued_s(self, position: int) -> float:
        """From its submission until it went into the engine, in seconds."""
        future = self._left.get(position)
        return self.claim.queued_s + (0.0 if future is None else self.bench.waiting_room.waited_s(future))

    def _signed(self, position: int, answer: GenerationResult | PromptmillError) -> bytes:
        """The answer for the wire, with what only the worker knows."""
        return answer_to_wire(
            answer,
            queued_s=self._queued_s(position),
            model=self.bench.served_name,
            worker=self.bench.worker_name,
            attempts=self._attempts[position],
        )


def _failure(future: Future[GenerationResult]) -> BaseException | None:
    return None if future.cancelled() else future.exception()


def _is_engine_death(message: Message) -> bool:
    return isinstance(message, Done) and isinstance(_failure(message.future), EngineDiedError)
