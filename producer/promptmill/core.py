"""What both clients do: the verbs, written once."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from promptmill.delta import Delta
from promptmill.errors import BrokerUnavailableError, InvalidRequestError, PromptmillError
from promptmill.fleet import Fleet
from promptmill.map_progress import MapProgress
from promptmill.mapping import MappingOptions, OnError, run_map
from promptmill.names import PriorityName
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams
from promptmill.session import Session
from promptmill.source import Source
from promptmill.task import AsyncTask, parse_task_id

__all__ = ["Prompt", "Verbs", "read_once"]

log = logging.getLogger(__name__)

#: A prompt as ``map`` takes it: bare text, or a chat.
Prompt = str | Sequence[Mapping[str, Any]]


class Verbs:
    """The verbs of a client, to be awaited. ``AsyncClient`` is these; ``Client`` runs them over a blocking transport.

    Args:
        session: The way to the broker.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        params: SamplingParams | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        idempotency_key: str | None = None,
        **sampling: Any,
    ) -> GenerationResult:
        """See ``Client.generate``. Giving up the wait, as by ``asyncio.timeout``, counts as Ctrl-C."""
        task = await self.submit(
            prompt,
            messages=messages,
            params=params,
            model=model,
            priority=priority,
            timeout_s=timeout_s,
            require_worker=require_worker,
            idempotency_key=idempotency_key,
            **sampling,
        )
        try:
            return await task.result()
        except Exception:  # the task's own end, or the client's
            raise
        except BaseException:  # interrupted: nobody will ask for the result
            if idempotency_key is None:
                await _cancel(task)
            raise

    async def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        params: SamplingParams | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        stream: bool = False,
        idempotency_key: str | None = None,
        **sampling: Any,
    ) -> AsyncTask:
        """See ``Client.submit``."""
        request = GenerationRequest.of(prompt, messages, params, stream=stream, **sampling)
        return await self._submit(request, model, priority, timeout_s, require_worker, idempotency_key=idempotency_key)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        params: SamplingParams | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        idempotency_key: str | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[Delta, None]:
        """See ``Client.stream``; the prompt is submitted when the iteration begins."""
        request = GenerationRequest.of(prompt, messages, params, stream=True, **sampling)
        return self._stream(request, model, priority, timeout_s, require_worker, idempotency_key=idempotency_key)

    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        params: SamplingParams | None = None,
        *,
        model: str | None = None,
        ordered: bool = True,
        max_in_flight: int | None = None,
        chunk_size: int | None = None,
        on_error: OnError = "raise",
        on_progress: Callable[[MapProgress], None] | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        **sampling: Any,
    ) -> AsyncGenerator[GenerationResult, None]:
        """See ``Client.map``; ``prompts`` may be an asynchronous iterable, too."""
        if isinstance(prompts, str):
            raise InvalidRequestError("prompts: give a list of prompts, this is a single one")
        shared = SamplingParams.of(params, **sampling)
        source = Source(prompts, lambda prompt: _request_of(prompt, shared))
        options = MappingOptions(
            model, require_worker, ordered, on_error, max_in_flight, chunk_size, priority, timeout_s, on_progress
        )
        return run_map(self._session, source, options)

    def map_requests(
        self,
        requests: Iterable[GenerationRequest | InvalidRequestError]
        | AsyncIterable[GenerationRequest | InvalidRequestError],
        *,
        model: str | None = None,
        ordered: bool = True,
        max_in_flight: int | None = None,
        chunk_size: int | None = None,
        on_error: OnError = "raise",
        on_progress: Callable[[MapProgress], None] | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        total: int | None = None,
    ) -> AsyncGenerator[GenerationResult, None]:
        """See ``Client.map_requests``."""
        source = Source(requests, lambda request: request, total)
        options = MappingOptions(
            model, require_worker, ordered, on_error, max_in_flight, chunk_size, priority, timeout_s, on_progress
        )
        return run_map(self._session, source, options)

    def task(self, task_id: str) -> AsyncTask:
        """See ``Client.task``."""
        record_id, position = parse_task_id(task_id)
        submission = self._session.find(record_id)
        if submission is not None and position >= submission.entry.count:
            submission = None  # the broker will say that there is no such prompt
        return AsyncTask(self._session, record_id, position, submission)

    async def fleet(self) -> Fleet:
        """See ``Client.fleet``."""
        return await self._session.fleet()

    async def close(self) -> None:
        """See ``Client.close``."""
        await self._session.close()

    async def _submit(
        self,
        request: GenerationRequest,
        model: str | None,
        priority: PriorityName,
        timeout_s: float | None,
        require_worker: bool,
        *,
        idempotency_key: str | None,
    ) -> AsyncTask:
        served = await self._session.models.resolve(model, require_worker)
        submission = self._session.prepare([request], served, priority, timeout_s, idempotency_key=idempotency_key)
        task = AsyncTask(self._session, submission.entry.record_id, submission=submission)
        try:
            record_id = await self._session.enter(submission)
        except Exception:  # it was not entered, as far as is known
            raise
        except BaseException:  # interrupted: nobody will know its id
            if idempotency_key is None:
                await _cancel(task)
            raise
        return task if record_id == submission.entry.record_id else self.task(record_id)

    async def _stream(
        self, request: GenerationRequest, *options: Any, idempotency_key: str | None
    ) -> AsyncGenerator[Delta, None]:
        task = await self._submit(request, *options, idempotency_key=idempotency_key)
        async with aclosing(read_once(task, idempotency_key)) as deltas:
            async for delta in deltas:
                yield delta


def read_once(task: AsyncTask, idempotency_key: str | None) -> AsyncGenerator[Delta, None]:
    """The deltas of a task for the one who submitted it: leaving cancels it, unless others may come with its key."""
    return task.stream() if idempotency_key is not None else _cancelled_if_left(task)


async def _cancelled_if_left(task: AsyncTask) -> AsyncGenerator[Delta, None]:
    """The task's deltas; leaving the iteration early cancels the task."""
    try:
        async with aclosing(task.stream()) as deltas:
            async for delta in deltas:
                yield delta
    except PromptmillError:  # the task's own end, or there is no broker to cancel with
        raise
    except BaseException:  # closed, or interrupted
        await _cancel(task)
        raise


async def _cancel(task: AsyncTask) -> None:
    if sys.is_finalizing():  # nothing can be sent any more
        return
    try:
        await task.cancel()
    except BrokerUnavailableError as failure:  # it ends by itself, or at its deadline
        log.warning("could not cancel task %s: %s", task.id, failure)


def _request_of(prompt: Prompt, params: SamplingParams) -> GenerationRequest | InvalidRequestError:
    try:
        if isinstance(prompt, str):
            return GenerationRequest.of(prompt, params=params)
        return GenerationRequest.of(messages=prompt, params=params)
    except InvalidRequestError as error:
        return error
