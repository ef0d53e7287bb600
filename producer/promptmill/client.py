"""The client: prompts in, results out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from promptmill import mapping
from promptmill.broker import broker_errors, connect
from promptmill.errors import InvalidRequestError, NoWorkerError
from promptmill.fleet import Fleet, read_fleet, read_workers
from promptmill.ledger import Entry, Ledger, Snapshot
from promptmill.names import Names, PriorityName, lane_name, model_of_queue, priority_of, queue_name
from promptmill.protocol import GenerationRequest, GenerationResult, requests_to_wire
from promptmill.replies import ReplyReader
from promptmill.sampling_params import SamplingParams
from promptmill.settings import ClientSettings, ServedName
from promptmill.submission import Submission, Waiter
from promptmill.task import Task, parse_task_id

__all__ = ["Client"]

log = logging.getLogger(__name__)

#: A prompt as ``map`` takes it: bare text, or a chat.
Prompt = str | Sequence[Mapping[str, Any]]

#: The most prompts in one record: the broker's Lua hands no more than 8,000 values to a command.
MAX_CHUNK_SIZE = 1024

#: How long the answer to "which models are served?" is believed, in seconds.
MODELS_CACHE_S = 5.0


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
        self._names = Names(self.settings.key_prefix)
        self._redis = connect(self.settings, socket_timeout=self.settings.broker_timeout_s)
        self._ledger = Ledger(self._redis, self._names, patience_s=self.settings.broker_timeout_s)
        self._replies = ReplyReader(
            connect(self.settings),
            Ledger(self._redis, self._names),
            lambda: self._names.replies(uuid.uuid4().hex),
            self._warn_without_worker,
        )
        self._models: tuple[float, list[str]] = (0.0, [])
        self._warned_of: set[str] = set()

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
            sampling: Single sampling parameters by name, over ``params``.

        Raises:
            InvalidRequestError: something is wrong with the arguments; nothing was sent.
            NoWorkerError: see ``require_worker``; also when no model is named and none is served.
            BrokerUnavailableError: the broker does not answer.
        """
        request = GenerationRequest.of(prompt, messages, params, **sampling)
        submission = self.prepare([request], self._served(model, require_worker), priority, timeout_s)
        self.enter([submission])
        return Task(self, submission.entry.record_id, submission=submission)

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
            A result a prompt; ``index`` is the prompt's position. Ending the iteration cancels what is left.

        Raises:
            PromptmillError: as ``submit`` and, with ``on_error="raise"``, ``Task.result``.
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
        served = self._served(model, require_worker)
        run = mapping.Mapping(self, iter(requests), served, max_in_flight, chunk_size)
        return mapping.run_map(run, ordered=ordered, raise_errors=on_error == "raise")

    def task(self, task_id: str) -> Task:
        """The handle of a task that this or any other process has submitted."""
        record_id, position = parse_task_id(task_id)
        return Task(self, record_id, position, self._replies.find(record_id))

    def fleet(self) -> Fleet:
        """Workers, models and queues as they are now.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        with broker_errors(self.settings):
            return self._ledger.patiently(lambda: read_fleet(self._redis, self._names))

    def close(self) -> None:
        """Closes the connections. Tasks go on; their results can be fetched by id."""
        self._ledger.close()
        self._replies.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What Task and Mapping are built on.

    def prepare(
        self,
        requests: Sequence[GenerationRequest],
        model: str,
        priority: PriorityName = "normal",
        timeout_s: float | None = None,
        on_answers: Waiter | None = None,
    ) -> Submission:
        """One record of ``requests``, checked and not yet entered."""
        if priority not in ("high", "normal", "low"):
            raise InvalidRequestError(f"priority: {priority!r} is not allowed: it is 'high', 'normal' or 'low'")
        if timeout_s is not None and not (isinstance(timeout_s, int | float) and 0 < timeout_s <= 31_536_000):
            raise InvalidRequestError(f"timeout_s: {timeout_s!r} is not allowed (range: > 0 and ≤ 31536000)")
        wire = requests_to_wire(requests)
        if len(wire) > self.settings.max_request_bytes:
            self._check_sizes(requests)
        entry = Entry(
            record_id=uuid.uuid4().hex,
            lane=lane_name(queue_name(model), priority_of(priority)),
            requests=wire,
            count=len(requests),
            reply=self._replies.stream,
            timeout_s=self.settings.timeout_s if timeout_s is None else timeout_s,
            result_ttl_s=self.settings.result_ttl_s,
        )
        return Submission(entry, on_answers)

    def enter(self, submissions: Sequence[Submission]) -> None:
        """Hands submissions to the broker."""
        for submission in submissions:
            self._replies.expect(submission)
        with broker_errors(self.settings):
            self._ledger.enter([submission.entry for submission in submissions])

    def look(self, record_id: str) -> Snapshot:
        """What the broker holds of a record."""
        with broker_errors(self.settings):
            return self._ledger.look([record_id])[0]

    def settle(self, record_id: str, answer: bytes, positions: Sequence[int] = ()) -> int:
        """Answers what is left of a record, see ``Ledger.settle``."""
        with broker_errors(self.settings):
            return self._ledger.settle(record_id, answer, positions)

    def forget(self, record_ids: Sequence[str]) -> None:
        """Deletes answers that have been read."""
        with broker_errors(self.settings):
            self._ledger.forget(record_ids)

    def _check_sizes(self, requests: Sequence[GenerationRequest]) -> None:
        limit = self.settings.max_request_bytes
        for request in requests:
            size = len(request.model_dump_json(exclude_defaults=True).encode())
            if size > limit:
                raise InvalidRequestError(
                    f"the prompt is {size:,} bytes of JSON, the limit is {limit:,}: shorten it, or raise "
                    "PROMPTMILL_MAX_REQUEST_BYTES"
                )

    def _served(self, model: str | None, require_worker: bool) -> str:
        """The served name to submit to."""
        wanted = self.settings.model if model is None else _served_name(model)
        if wanted is not None and not require_worker:
            return wanted
        served = self._served_models()
        if wanted is not None:
            if wanted not in served:
                raise NoWorkerError(f"no worker serves {wanted!r}; served are: {', '.join(served) or 'none'}", wanted)
            return wanted
        if not served:
            raise NoWorkerError(
                "no model was named and no worker is up: start a worker, or name the model (model=, PROMPTMILL_MODEL)"
            )
        if len(served) > 1:
            raise InvalidRequestError(f"several models are served, name one of them: {', '.join(served)}")
        return served[0]

    def _served_models(self) -> list[str]:
        asked_at, served = self._models
        if not served or time.monotonic() - asked_at > MODELS_CACHE_S:
            with broker_errors(self.settings):
                workers = self._ledger.patiently(lambda: read_workers(self._redis, self._names))
            served = sorted({worker.served_name for worker in workers})
            self._models = (time.monotonic(), served)
        return served

    def _warn_without_worker(self, queues: set[str]) -> None:
        """Says, once for each model, why nothing happens. Called on the reply reader's thread."""
        served = {worker.served_name for worker in read_workers(self._redis, self._names)}
        for model in {model_of_queue(queue) for queue in queues} - served - self._warned_of:
            log.warning(
                "no worker serves %r; the tasks wait for one (served are: %s)",
                model,
                ", ".join(sorted(served)) or "none",
            )
            self._warned_of.add(model)


_SERVED_NAME: TypeAdapter[str] = TypeAdapter(ServedName)


def _served_name(model: str) -> str:
    try:
        return _SERVED_NAME.validate_python(model)
    except ValidationError:
        raise InvalidRequestError(
            f"model: {model!r} is not a served name: letters, digits, dots, dashes and underscores, as "
            "`promptmill status` shows it"
        ) from None


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
