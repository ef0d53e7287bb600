"""The two Celery tasks of a worker."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.app.task import Task
from celery.exceptions import BackendError, Ignore
from celery.worker import state
from celery.worker.request import Request
from kombu.exceptions import OperationalError

from promptmill.errors import PromptmillError, TaskCancelledError, TaskExpiredError
from promptmill.ledger import Claim
from promptmill.names import GENERATE_TASK, RUN_TASK
from promptmill.protocol import GenerationResult, answer_from_wire
from promptmill_worker.broker_trouble import BROKER_TROUBLE
from promptmill_worker.claims import ClaimWork
from promptmill_worker.json_logs import about_task
from promptmill_worker.plain_calls import entry_of_call, request_of_call
from promptmill_worker.private_request import PrivateRequest, note_outcome
from promptmill_worker.room import Places

if TYPE_CHECKING:
    from promptmill_worker.runtime import Runtime

__all__ = ["register_tasks"]

#: What keeps Celery from storing a result, and may pass.
_NOT_STORED = (*BROKER_TROUBLE, OperationalError, BackendError)

#: The turn may go to a chunk that is larger than the pointer's own: room for so many prompts is tried for, but not for
#: more than this part of what is free, as other pointers are on their way.
MORE_ROOM, MORE_SHARE = 16, 4

#: A plain call carries no deadline of ours; this is the client's default.
PLAIN_CALL_TIMEOUT_S = 86_400.0


def register_tasks(app: Celery, runtime: Runtime) -> None:
    """Adds ``promptmill.run`` and ``promptmill.generate`` to the worker's app."""

    class OurRequest(PrivateRequest):
        model = runtime.settings.name_served

    @app.task(name=RUN_TASK, base=_QuietTask, Request=OurRequest)  # type: ignore[untyped-decorator]
    def run(record_id: str, lane: str, score: str, count: str) -> None:
        """Works off one ledger record, or what others have left of it; or another one, if it is that one's turn."""
        wanted = max(int(count), min(MORE_ROOM, runtime.room.free // MORE_SHARE))
        with about_task(record_id), Places(runtime.room, wanted) as places, ExitStack() as lease:
            _work_off(runtime, record_id, places, lease, lane, score)

    class EnteringRequest(OurRequest):
        """A plain call is in the ledger before its message is acknowledged, so that it can't get lost in between."""

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            entry = entry_of_call(
                self, runtime.settings.name_served, PLAIN_CALL_TIMEOUT_S, runtime.settings.result_ttl_s
            )
            if entry is not None:
                runtime.ledger.enter([entry])
            super().on_accepted(pid, time_accepted)

    @app.task(name=GENERATE_TASK, base=_QuietTask, bind=True, ignore_result=False, Request=EnteringRequest)  # type: ignore[untyped-decorator]
    def generate(self: Task, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Generates for one prompt; see ``plain_calls.request_of_call`` for the arguments."""
        request_of_call(arguments, keywords)  # a call that is wrong was not entered, and ends here
        # Held until Celery has stored the result, or a next step of a chain would be sent twice.
        lease = self.request.lease = ExitStack()
        with about_task(self.request.id), Places(runtime.room, 1) as places:
            return _plain_result(self.request.id, _plain_answer(runtime, self, places, lease))

    @signals.task_postrun.connect(weak=False, sender=generate)  # type: ignore[untyped-decorator]
    def end_call(task_id: str, task: Task, state: str, **_: Any) -> None:
        """Celery has stored the result: the record has done its work.

        If not, as the broker was away, the lease runs out, and another worker hands the answer over.
        """
        # Celery calls this in a `finally`, with the state that it meant to store.
        if state in ("SUCCESS", "FAILURE") and not isinstance(sys.exc_info()[1], _NOT_STORED):
            runtime.ledger.drop(task_id)
        lease = task.request.get("lease")
        if lease is not None:
            lease.close()

    @signals.task_revoked.connect(weak=False)  # type: ignore[untyped-decorator]
    def end_revoked(request: Request, **_: Any) -> None:
        """``revoke`` of a task that waits, and with ``terminate=True`` of one that runs; or Celery's ``expires``."""
        runtime.revoke(request.id)


class _QuietTask(Task):  # type: ignore[misc]
    """Keeps answers out of logs and events, where Celery would put the result's repr."""

    abstract = True
    resultrepr_maxsize = 0
    #: A call's own error is its caller's to see: no traceback in our log.
    throws = (PromptmillError,)


def _plain_answer(runtime: Runtime, task: Task, places: Places, lease: ExitStack) -> GenerationResult | PromptmillError:
    task_id: str = task.request.id
    outcome = _work_off(runtime, task_id, places, lease)
    # The stored answer, which need not be ours: the first one stays.
    stored = runtime.ledger.look([task_id])[0].answers.get(0)
    answer = answer_from_wire(stored) if stored is not None else None
    if outcome is None and answer is not None:
        _store_again(task, answer)
    if outcome is None or task_id in state.revoked:
        raise Ignore
    # Given up: put back, or answered by somebody else. A cancelled or expired call will not be run again.
    if answer is not None and (outcome.finished or isinstance(answer, TaskCancelledError | TaskExpiredError)):
        return answer
    raise Ignore


def _store_again(task: Task, answer: GenerationResult | PromptmillError) -> None:
    """Stores the result of a call whose message came twice, without its next steps, unless Celery has it.

    Celery has just stored that this second run has started. It looks first whether there is a result; if that comes
    between the look and the storing, it is written over.
    """
    if isinstance(answer, PromptmillError):
        task.backend.store_result(task.request.id, answer, "FAILURE", request=task.request)
    else:
        task.backend.store_result(
            task.request.id, _plain_result(task.request.id, answer), "SUCCESS", request=task.request
        )


def _plain_result(task_id: str, answer: GenerationResult | PromptmillError) -> dict[str, Any]:
    """What ``.get()`` returns: the result's fields, and the first choice's for short."""
    if isinstance(answer, PromptmillError):
        raise answer
    fields = answer.model_dump(mode="json", exclude={"index"}, exclude_none=True)
    return {**fields, "id": task_id, "text": answer.text, "finish_reason": answer.finish_reason}


@dataclass(frozen=True)
class _Outcome:
    claim: Claim
    #: Whether all of the claim is answered; else it had to be left to others.
    finished: bool


def _work_off(
    runtime: Runtime, record_id: str, places: Places, lease: ExitStack, lane: str = "", score: str = "0"
) -> _Outcome | None:
    """Claims what there is room for of a record, and works it off: beside others or, if it has to be, alone.

    Args:
        runtime: This worker.
        record_id: The record.
        places: The room.
        lease: The claim's lease is renewed until this is left.
        lane: See ``Ledger.claim``.
        score: See ``Ledger.claim``.

    Returns:
        None if there is nothing to do.
    """
    with runtime.gate.beside():
        claim = runtime.claim(record_id, places.count, lane, score)
        if claim is None:
            return None
        places.free(places.count - len(claim.positions))
        work = ClaimWork(runtime.bench, claim, places)
        lease.enter_context(runtime.leases.holding(claim.token, work))
        if claim.answer is not None:  # a plain call's, whose worker was lost before Celery had it
            return _Outcome(claim, finished=True)
        if not claim.alone:
            work.begin()
            return _Outcome(claim, _run(work))
    with runtime.gate.alone(work.begin):
        return _Outcome(claim, _run(work))


def _run(work: ClaimWork) -> bool:
    """``work.run()``, and what came of it is noted for those who watch."""
    try:
        return work.run()
    finally:
        note_outcome(work.tally, work.claim.record_id)
