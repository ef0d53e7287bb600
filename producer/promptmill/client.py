"""The client: prompts in, results out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from promptmill.blocking import BlockingTransport, iterate, run
from promptmill.core import Prompt, Verbs, read_once
from promptmill.delta import Delta
from promptmill.errors import InvalidRequestError
from promptmill.fleet import Fleet
from promptmill.map_progress import MapProgress
from promptmill.mapping import OnError
from promptmill.names import PriorityName
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams
from promptmill.session import Session
from promptmill.settings import ClientSettings
from promptmill.task import Task

__all__ = ["Client"]


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
        self._session = Session(self.settings, BlockingTransport.open)
        self._verbs = Verbs(self._session)

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
        idempotency_key: str | None = None,
        **sampling: Any,
    ) -> GenerationResult:
        """Submits one prompt and waits for its result; the arguments are ``submit``'s.

        Ctrl-C cancels a task without an ``idempotency_key``.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.result`` raises.
        """
        return run(
            self._verbs.generate(
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
        )

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
        idempotency_key: str | None = None,
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
        task = run(
            self._verbs.submit(
                prompt,
                messages=messages,
                params=params,
                model=model,
                priority=priority,
                timeout_s=timeout_s,
                require_worker=require_worker,
                stream=stream,
                idempotency_key=idempotency_key,
                **sampling,
            )
        )
        return Task(task)

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
    ) -> Iterator[Delta]:
        """Submits one prompt, at once, and yields its text as it is made; the arguments are ``submit``'s.

        Yields:
            As ``Task.stream``. Leaving the iteration early, once it has begun, cancels a task without an
            ``idempotency_key``.

        Raises:
            PromptmillError: whatever ``submit`` or ``Task.stream`` raises.
        """
        task = run(
            self._verbs.submit(
                prompt,
                messages=messages,
                params=params,
                model=model,
                priority=priority,
                timeout_s=timeout_s,
                require_worker=require_worker,
                stream=True,
                idempotency_key=idempotency_key,
                **sampling,
            )
        )
        return iterate(read_once(task, idempotency_key))

    def map(
        self,
        prompts: Iterable[Prompt],
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
    ) -> Iterator[GenerationResult]:
        """Runs any number of prompts, with bounded memory here, in the broker and in the workers.

        Args:
            prompts: Any iterable of prompts (str) and chats (lists of messages); read as results come in.
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
        results = self._verbs.map(
            prompts,
            params,
            model=self._resolved(model, require_worker),
            ordered=ordered,
            max_in_flight=max_in_flight,
            chunk_size=chunk_size,
            on_error=on_error,
            on_progress=on_progress,
            priority=priority,
            timeout_s=timeout_s,
            **sampling,
        )
        return iterate(results)

    def map_requests(
        self,
        requests: Iterable[GenerationRequest | InvalidRequestError],
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
    ) -> Iterator[GenerationResult]:
        """``map`` for prompts that each have parameters of their own; the arguments are the same.

        An InvalidRequestError in place of a request counts as a prompt that failed so. ``total`` is how many there are,
        if that is known and ``requests`` has no length.
        """
        results = self._verbs.map_requests(
            requests,
            model=self._resolved(model, require_worker),
            ordered=ordered,
            max_in_flight=max_in_flight,
            chunk_size=chunk_size,
            on_error=on_error,
            on_progress=on_progress,
            priority=priority,
            timeout_s=timeout_s,
            total=total,
        )
        return iterate(results)

    def task(self, task_id: str) -> Task:
        """The handle of a task that this or any other process has submitted."""
        return Task(self._verbs.task(task_id))

    def fleet(self) -> Fleet:
        """Workers, models and queues as they are now.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        return run(self._verbs.fleet())

    def close(self) -> None:
        """Closes the connections. Tasks go on; their results can be fetched by id."""
        run(self._verbs.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _resolved(self, model: str | None, require_worker: bool) -> str:
        """Found out at once, so that a call that is wrong fails where it is written."""
        return run(self._session.models.resolve(model, require_worker))
