"""Every error a user of promptmill can meet.

    PromptmillError
    ├── InvalidRequestError        what you asked for can't be done; found before sending, or by the worker
    ├── InvalidSettingError        a setting has a value that means nothing; nothing was started
    ├── QueueFullError             the queue is at its limit
    ├── BrokerUnavailableError     the broker doesn't answer, or doesn't let us in
    ├── NoWorkerError              no worker serves the model
    ├── ModelLoadError             a worker can't load its model
    ├── TaskFailedError            the task ran and ended in a failure
    │   ├── PromptTooLongError     longer than the model's context
    │   ├── TooManyDeliveriesError the prompt's workers died under it, again and again
    │   └── EngineError            the engine could not generate for this prompt
    ├── TaskCancelledError         somebody cancelled it
    ├── TaskExpiredError           its deadline passed first
    ├── ResultTimeoutError         it isn't there yet; the task goes on
    └── ResultNotFoundError        no such task, or its result was kept long enough and is gone

Every value of an error is in its ``args``, so that it survives pickle, Celery's result backend and our own
wire format with its class and its attributes. No message ever holds a prompt, an answer or a password.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BrokerUnavailableError",
    "EngineError",
    "InvalidRequestError",
    "InvalidSettingError",
    "ModelLoadError",
    "NoWorkerError",
    "PromptTooLongError",
    "PromptmillError",
    "QueueFullError",
    "ResultNotFoundError",
    "ResultTimeoutError",
    "TaskCancelledError",
    "TaskExpiredError",
    "TaskFailedError",
    "TooManyDeliveriesError",
    "error_from_wire",
    "error_to_wire",
]


class PromptmillError(Exception):
    """The root of the tree.

    Args:
        message: What happened, with the value, and what to do about it.

    Attributes:
        index: Of an error that a ``map`` raises: the place of its prompt among all. Otherwise None.
        http_status: What a web application may answer, whose request ended in this. From 500 on it is our trouble, and
            the message none of the caller's business.
    """

    http_status: ClassVar[int] = 500
    index: int | None = None

    def __init__(self, message: str = "", *values: Any) -> None:
        super().__init__(message, *values)
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(PromptmillError, ValueError):
    """What was asked for can't be done; the message names the field, the value and the range."""

    http_status = 422


class InvalidSettingError(PromptmillError, ValueError):
    """A setting has a value that means nothing; the message names the setting and what it takes."""


class QueueFullError(PromptmillError):
    """The queue of a model is at its limit, or the broker's memory is.

    Attributes:
        queued_prompts: How many prompts the queue holds.
        limit_prompts: How many it may hold.
    """

    http_status = 503

    def __init__(self, message: str = "", queued_prompts: int = 0, limit_prompts: int = 0) -> None:
        super().__init__(message, queued_prompts, limit_prompts)
        self.queued_prompts = queued_prompts
        self.limit_prompts = limit_prompts


class BrokerUnavailableError(PromptmillError, ConnectionError):
    """The broker can't be reached, or refuses us; the message names host and port, never the password."""

    http_status = 503


class NoWorkerError(PromptmillError):
    """No living worker serves the model.

    Attributes:
        model: The served name that was asked for; empty when none was named.
    """

    http_status = 503

    def __init__(self, message: str = "", model: str = "") -> None:
        super().__init__(message, model)
        self.model = model


class ModelLoadError(PromptmillError):
    """A worker can't load its model; the message says which, why, and what to check."""


class TaskFailedError(PromptmillError):
    """The task ran and ended in a failure."""

    http_status = 502


class PromptTooLongError(TaskFailedError):
    """The prompt doesn't fit the model's context.

    Attributes:
        prompt_tokens: Length of the prompt, in tokens.
        limit_tokens: The longest prompt that fits, in tokens.
    """

    http_status = 422

    def __init__(self, message: str = "", prompt_tokens: int = 0, limit_tokens: int = 0) -> None:
        super().__init__(message, prompt_tokens, limit_tokens)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class TooManyDeliveriesError(TaskFailedError):
    """The prompt was given to several workers, and each of them died while it ran.

    Attributes:
        attempts: How many workers had it in their engine.
    """

    def __init__(self, message: str = "", attempts: int = 0) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts


class EngineError(TaskFailedError):
    """The engine could not generate for this prompt."""


class TaskCancelledError(PromptmillError):
    """The task was cancelled before it was answered."""

    http_status = 410


class TaskExpiredError(PromptmillError):
    """The task's deadline passed before it was answered.

    Attributes:
        partial_text: What had been generated by then; empty if it never ran.
    """

    http_status = 504

    def __init__(self, message: str = "", partial_text: str = "") -> None:
        super().__init__(message, partial_text)
        self.partial_text = partial_text


class ResultTimeoutError(PromptmillError, TimeoutError):
    """The result isn't there yet; the task goes on, and its result can be asked for again.

    Attributes:
        task_id: The task that was waited for.
    """

    http_status = 504

    def __init__(self, message: str = "", task_id: str = "") -> None:
        super().__init__(message, task_id)
        self.task_id = task_id


class ResultNotFoundError(PromptmillError, LookupError):
    """The broker knows neither the task nor its result.

    Attributes:
        task_id: The task that was asked for.
    """

    http_status = 404

    def __init__(self, message: str = "", task_id: str = "") -> None:
        super().__init__(message, task_id)
        self.task_id = task_id


def _tree(root: type[PromptmillError]) -> dict[str, type[PromptmillError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_to_wire(error: PromptmillError) -> dict[str, Any]:
    """The error as JSON-ready data: ``{"type": class name, "args": [message, values...]}``."""
    return {"type": type(error).__name__, "args": list(error.args)}


def error_from_wire(wire: dict[str, Any]) -> PromptmillError:
    """The error that ``error_to_wire`` described; a type this version doesn't know becomes TaskFailedError.

    Raises:
        LookupError, TypeError, ValueError: it describes none.
    """
    if not all(isinstance(text, str) for text in (wire["type"], *wire["args"][:1])):
        raise ValueError("the description of an error has a type and a message")
    known = _tree(PromptmillError).get(wire["type"])
    if known is None:
        return TaskFailedError(f"{wire['type']}: {wire['args'][0] if wire['args'] else ''}")
    try:
        return known(*wire["args"])
    except TypeError:  # written by a newer version, which gives it more values
        return known(wire["args"][0])
