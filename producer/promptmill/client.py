"""The client: prompts in, results out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from promptmill import mapping
from promptmill.delta import Delta
from promptmill.errors import BrokerUnavailableError, InvalidRequestError, PromptmillError
from promptmill.fleet import Fleet
from promptmill.names import PriorityName
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams
from promptmill.session import Session
from promptmill.settings import ClientSettings
from promptmill.task import Task, parse_task_id

__all__ = ["Client"]

log = logging.getLogger(__name__)

#: A prompt as ``map`` takes it: bare text, or a chat.
Prompt = str | Sequence[Mapping[str, Any]]

#: The most prompts in one record: the broker's Lua hands no more than 8,000 values to a command.
MAX_CHUNK_SIZE = 1024


class Client:
    """Submits prompts to the workers behind one broker. Thread-safe; a context manager.

    Args:
        broker_url: ``redis://``, ``rediss://``, ``redis+socket://`` or ``sentinel://``;
            default ``PROMPTMILL_BROKER_URL``, else ``redis://localhost:6379/0``.
        model: Served name to submit to; default ``PROMPTMILL_MODEL``, else the only model that is served.
        settings: Other fields of ``ClientSettings`` by name.

    Raises:
        InvalidSettingError: a setting has a value that means nothing.
    """

    def __init__(self, broker_url: str | None = None, *, model: str | None = None, **settings: Any) -> None:
        self.settings = ClientSettings.read(broker_url=broker_url, model=model, **settings)
        self._session = Session(self.settings)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        params: SamplingParams | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        require_worker: bool = False,
        **sampling: Any,
    ) -> GenerationResult:
        """Submits one prompt and waits for its result; the arguments are ``submit``'s.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.result`` raises.
        """
        return self.submit(
            prompt,
            messages=messages,
            params=params,
            model=model,
            priority=priority,
            timeout_s=timeout_s,
            require_worker=require_worker,
            **sampling,
        ).result()

    def submit(
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
        **sampling: Any,
    ) -> Task:
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
            sampling: Single sampling parameters by name, over ``params``.

        Raises:
            InvalidRequestError: something is wrong with the arguments; nothing was sent.
            NoWorkerError: see ``require_worker``; also when no model is named and none is served.
            BrokerUnavailableError: the broker does not answer.
        """
        request = GenerationRequest.of(prompt, messages, params, stream=stream, **sampling)
        submission = self._session.prepare(
            [request], self._session.models.resolve(model, require_worker), priority, timeout_s
        )
        self._session.enter(submission)
        return Task(self._session, submission.entry.record_id, submission=submission)

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
        **sampling: Any,
    ) -> Iterator[Delta]:
        """Submits one prompt, at once, and yields its text as it is made; the arguments are ``submit``'s.

        Yields:
            As ``Task.stream``. Leaving the iteration early, once it has begun, cancels the task.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.stream`` raises.
        """
        task = self.submit(
            prompt,
            messages=messages,
            params=params,
            model=model,
            priority=priority,
            timeout_s=timeout_s,
            require_worker=require_worker,
            stream=True,
            **sampling,
        )
        return _cancelled_if_left(task)

    def map(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | None = None,
        *,
        model: str | None = None,
        ordered: bool = True,
        max_in_flight: int = 1024,
        chunk_size: int = 64,
        on_error: Literal["raise", "yield"] = "raise",
        require_worker: bool = False,
        **sampling: Any,
    ) -> Iterator[GenerationResult]:
        """Runs any number of prompts, with bounded memory here, in the broker and in the workers.

        Args:
            prompts: Any iterable of prompts (str) and chats (lists of messages); read as results come in.
            params: Sampling parameters of all prompts.
            model: Served name, over the client's.
            ordered: Yield in the order of the prompts, or as they finish.
            max_in_flight: The most prompts that are read from ``prompts`` and not yielded yet.
            chunk_size: Prompts that travel together; workers still share a chunk.
            on_error: "raise" ends the run with the first failed prompt's error; "yield" yields a result with ``error``
                set in its place.
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
        shared = SamplingParams.of(params, **sampling)
        return self.map_requests(
            _requests_of(prompts, shared),
            model=model,
            ordered=ordered,
            max_in_flight=max_in_flight,
            chunk_size=chunk_size,
            on_error=on_error,
            require_worker=require_worker,
        )

    def map_requests(
        self,
        requests: Iterable[GenerationRequest | InvalidRequestError],
        *,
        model: str | None = None,
        ordered: bool = True,
        max_in_flight: int = 1024,
        chunk_size: int = 64,
        on_error: Literal["raise", "yield"] = "raise",
        require_worker: bool = False,
    ) -> Iterator[GenerationResult]:
        """``map`` for prompts that each have parameters of their own; the arguments are the same.

        An InvalidRequestError in place of a request counts as a prompt that failed so.
        """
        if on_error not in ("raise", "yield"):
            raise InvalidRequestError(f"on_error: {on_error!r} is not allowed: it is 'raise' or 'yield'")
        if max_in_flight < 1:
            raise InvalidRequestError(f"max_in_flight: {max_in_flight!r} is not allowed (range: ≥ 1)")
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidRequestError(f"chunk_size: {chunk_size!r} is not allowed (range: ≥ 1 and ≤ {MAX_CHUNK_SIZE})")
        served = self._session.models.resolve(model, require_worker)
        run = mapping.Mapping(self._session, iter(requests), served, max_in_flight, chunk_size)
        return mapping.run_map(run, ordered=ordered, raise_errors=on_error == "raise")

    def task(self, task_id: str) -> Task:
        """The handle of a task that this or any other process has submitted."""
        record_id, position = parse_task_id(task_id)
        submission = self._session.find(record_id)
        if submission is not None and position >= submission.entry.count:
            submission = None  # the broker will say that there is no such prompt
        return Task(self._session, record_id, position, submission)

    def fleet(self) -> Fleet:
        """Workers, models and queues as they are now.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        return self._session.fleet()

    def close(self) -> None:
        """Closes the connections. Tasks go on; their results can be fetched by id."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _cancelled_if_left(task: Task) -> Iterator[Delta]:
    try:
        yield from task.stream()
    except PromptmillError:  # the task's own end, or there is no broker to cancel with
        raise
    except BaseException:  # closed, or interrupted
        if sys.is_finalizing():  # nothing can be sent any more
            raise
        try:
            task.cancel()
        except BrokerUnavailableError as failure:  # it ends by itself, or at its deadline
            log.warning("could not cancel task %s: %s", task.id, failure)
        raise


def _requests_of(
    prompts: Iterable[Prompt], params: SamplingParams
) -> Iterator[GenerationRequest | InvalidRequestError]:
    for prompt in prompts:
        try:
            if isinstance(prompt, str):
                yield GenerationRequest.of(prompt, params=params)
            else:
                yield GenerationRequest.of(messages=prompt, params=params)
        except InvalidRequestError as error:
            yield error
