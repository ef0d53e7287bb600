"""The client: prompts in, results out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from promptmill.blocking import BlockingTransport, iterate, run
from promptmill.core import Verbs, read_once
from promptmill.delta import Delta
from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationResult
from promptmill.session import Session
from promptmill.settings import ClientSettings
from promptmill.task import AsyncTask, Task

__all__ = ["Client"]

P = ParamSpec("P")
T = TypeVar("T")


def _like(verb: Callable[..., Any], returns: object) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Gives a method the name, the arguments and the docstring of ``verb``."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        shown = wraps(verb)(method)
        shown.__signature__ = signature(verb).replace(return_annotation=returns)  # type: ignore[attr-defined]
        return shown

    return decorate


def _run_of(verb: Callable[Concatenate[Verbs, P], Awaitable[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method with the arguments of ``verb`` that waits for its outcome."""

    @_like(verb, signature(verb).return_annotation)
    def method(client: Client, /, *arguments: P.args, **options: P.kwargs) -> T:
        return run(verb(client._verbs, *arguments, **options))

    return method


def _task_of(verb: Callable[Concatenate[Verbs, P], Awaitable[AsyncTask]]) -> Callable[Concatenate[Client, P], Task]:
    """The same, of a verb that makes a task."""

    @_like(verb, Task)
    def method(client: Client, /, *arguments: P.args, **options: P.kwargs) -> Task:
        return Task(run(verb(client._verbs, *arguments, **options)))

    return method


def _stream_of(
    verb: Callable[Concatenate[Verbs, P], AsyncGenerator[Delta, None]],
) -> Callable[Concatenate[Client, P], Generator[Delta, None, None]]:
    """The same, of the verb that streams: its prompt is submitted at once."""

    @_like(verb, Generator[Delta, None, None])
    def method(client: Client, /, *arguments: Any, **options: Any) -> Generator[Delta, None, None]:
        task = run(client._verbs.submit(*arguments, **options, stream=True))
        return iterate(read_once(task, options.get("idempotency_key")))

    return method


def _map_of(
    verb: Callable[Concatenate[Verbs, P], AsyncGenerator[GenerationResult, None]],
) -> Callable[Concatenate[Client, P], Generator[GenerationResult, None, None]]:
    """The same, of a verb that maps: which model it is for is found out at once, so that a wrong call fails there."""

    @_like(verb, Generator[GenerationResult, None, None])
    def method(client: Client, /, *arguments: Any, **options: Any) -> Generator[GenerationResult, None, None]:
        if any(isinstance(given, AsyncIterable) for given in (*arguments, *options.values())):
            raise InvalidRequestError("prompts: asynchronous iterables are for AsyncClient")
        model, require_worker = options.get("model"), options.get("require_worker", False)
        served = run(client._session.models.resolve(model, require_worker))
        return iterate(verb(client._verbs, *arguments, **{**options, "model": served}))

    return method


class Client:
    """Submits prompts to the workers behind one broker. Thread-safe; a context manager.

    Its verbs are those of ``core.Verbs``, run to their end.

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

    generate = _run_of(Verbs.generate)
    submit = _task_of(Verbs.submit)
    stream = _stream_of(Verbs.stream)
    map = _map_of(Verbs.map)
    map_requests = _map_of(Verbs.map_requests)
    fleet = _run_of(Verbs.fleet)
    close = _run_of(Verbs.close)

    def task(self, task_id: str) -> Task:
        """The handle of a task that this or any other process has submitted."""
        return Task(self._verbs.task(task_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
