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
from promptmill.map_options import Item, MapOptions, OnError
from promptmill.map_progress import MapProgress
from promptmill.map_results import run_map
from promptmill.names import PriorityName
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams
from promptmill.session import Session
from promptmill.source import NotYet, Source
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
        /,
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
        """Submits one prompt and waits for its result; the arguments are ``submit``'s.

        Giving up the wait, by Ctrl-C or ``asyncio.timeout``, cancels a task without an ``idempotency_key``.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.result`` raises.
        """
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
        /,
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
        """Submits one prompt and returns at once.

        Args:
            prompt: Text to continue as it stands.
            messages: Or a chat: a list of ``{"role", "content"}``.
            params: Sampling parameters.
            model: Served name, over the client's.
            priority: "high", "normal" or "low".
            timeout_s: The task's deadline from now, in seconds; then it is EXPIRED.
            require_worker: Raise NoWorkerError, and send nothing, when no worker serves the model.
            stream: Make the texts readable while they are made, by ``Task.stream``.
            idempotency_key: Names this submission, in 1 to 256 characters. Whoever submits the same request with the
                same key gets the same task, while it waits or runs and as long as its result is kept; a task that
                failed, was cancelled or has expired frees its key.
            sampling: Single sampling parameters by name, over ``params``.

        Raises:
            InvalidRequestError: something is wrong with the arguments, or another request has the key; nothing was
                accepted.
            NoWorkerError: see ``require_worker``; also when no model is named and none is served.
            BrokerUnavailableError: the broker does not answer.
        """
        request = GenerationRequest.of(prompt, messages, params, stream=stream, **sampling)
        return await self._submit(request, model, priority, timeout_s, require_worker, idempotency_key=idempotency_key)

    def stream(
        self,
        /,
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
        """Submits one prompt and yields its text as it is made; the arguments are ``submit``'s.

        ``Client`` submits at once, ``AsyncClient`` when the iteration begins.

        Yields:
            As ``Task.stream``. Leaving the iteration early, once it has begun, cancels a task without an
            ``idempotency_key``.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.stream`` raises.
        """
        request = GenerationRequest.of(prompt, messages, params, stream=True, **sampling)
        return self._stream(request, model, priority, timeout_s, require_worker, idempotency_key=idempotency_key)

    def map(
        self,
        /,
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
        """Runs any number of prompts, with bounded memory here, in the broker and in the workers.

        Args:
            prompts: Any iterable of prompts (str) and chats (lists of messages); read as results come in.
                ``AsyncClient`` takes an asynchronous iterable, too.
            params: Sampling parameters of all prompts.
            model: Served name, over the client's.
            ordered: Yield in the order of the prompts, or as they finish.
            max_in_flight: The most prompts that are read from ``prompts`` and not yielded yet; by default what keeps
                all workers of the model busy, and at least 1,024.
            chunk_size: The most prompts that travel together; by default chosen by the size of the prompts, the
                number of workers, and what is left where ``prompts`` has a length. Workers share a chunk.
            on_error: "raise" ends the run with the first failed prompt's error; "yield" yields a result with ``error``
                set in its place.
            on_progress: Called with a MapProgress before each result is yielded.
            priority: "high", "normal" or "low".
            timeout_s: The deadline of each prompt from its submission, in seconds.
            require_worker: Raise NoWorkerError when no worker serves the model.
            sampling: Single sampling parameters by name, over ``params``.

        Yields:
            A result a prompt; ``index`` is the prompt's position. Ending the iteration cancels what is left. Once the
            first prompts are submitted, a broker that goes away is waited for, with a warning in the log.

        Raises:
            PromptmillError: as ``submit`` and, with ``on_error="raise"``, ``Task.result``.
            ResultTimeoutError: the client was closed meanwhile.
        """
        if isinstance(prompts, str):
            raise InvalidRequestError("prompts: give a list of prompts, this is a single one")
        if "idempotency_key" in sampling:
            raise InvalidRequestError(
                "idempotency_key: a key is of one prompt, and map runs many: submit those that need one with "
                "submit(..., idempotency_key=...)"
            )
        shared = SamplingParams.of(params, **sampling)
        source: Source[Prompt, Item] = Source(prompts, lambda prompt: _request_of(prompt, shared))
        options = MapOptions(
            model, require_worker, ordered, on_error, max_in_flight, chunk_size, priority, timeout_s, on_progress
        )
        return run_map(self._session, source, options)

    def map_requests(
        self,
        /,
        requests: Iterable[GenerationRequest | InvalidRequestError | NotYet]
        | AsyncIterable[GenerationRequest | InvalidRequestError | NotYet],
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
        """``map`` for prompts that each have parameters of their own; the arguments are the same.

        An InvalidRequestError in place of a request counts as a prompt that failed so, a NotYet as none: what was read
        before it is sent, and answers are yielded, before ``requests`` is read on. ``total`` is how many there are,
        if that is known and ``requests`` has no length.
        """
        source: Source[Item, Item] = Source(requests, lambda request: request, total)
        options = MapOptions(
            model, require_worker, ordered, on_error, max_in_flight, chunk_size, priority, timeout_s, on_progress
        )
        return run_map(self._session, source, options)

    def task(self, task_id: str) -> AsyncTask:
        """The handle of a task that this or any other process has submitted."""
        record_id, position = parse_task_id(task_id)
        submission = self._session.find(record_id)
        if submission is not None and position >= submission.entry.count:
            submission = None  # the broker will say that there is no such prompt
        return AsyncTask(self._session, record_id, position, submission)

    async def fleet(self) -> Fleet:
        """Workers, models and queues as they are now.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        return await self._session.fleet()

    async def close(self) -> None:
        """Closes the connections. Tasks go on; their results can be fetched by id."""
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
