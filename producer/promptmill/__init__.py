"""promptmill: LLM generation on your own GPU machines, from any application."""

from promptmill.async_client import AsyncClient
from promptmill.client import Client
from promptmill.delta import Delta
from promptmill.errors import (
    BrokerUnavailableError,
    EngineError,
    InvalidRequestError,
    InvalidSettingError,
    ModelLoadError,
    NoWorkerError,
    PromptmillError,
    PromptTooLongError,
    QueueFullError,
    ResultNotFoundError,
    ResultTimeoutError,
    TaskCancelledError,
    TaskExpiredError,
    TaskFailedError,
    TooManyDeliveriesError,
)
from promptmill.fleet import Fleet
from promptmill.map_progress import MapProgress
from promptmill.protocol import (
    Choice,
    GenerationRequest,
    GenerationResult,
    Message,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from promptmill.sampling_params import SamplingParams
from promptmill.task import AsyncTask, Task, TaskStatus

__all__ = [
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Choice",
    "Client",
    "Delta",
    "EngineError",
    "Fleet",
    "GenerationRequest",
    "GenerationResult",
    "InvalidRequestError",
    "InvalidSettingError",
    "MapProgress",
    "Message",
    "ModelLoadError",
    "NoWorkerError",
    "PromptTooLongError",
    "PromptmillError",
    "QueueFullError",
    "ResultNotFoundError",
    "ResultTimeoutError",
    "SamplingParams",
    "Task",
    "TaskCancelledError",
    "TaskExpiredError",
    "TaskFailedError",
    "TaskStatus",
    "Timings",
    "TokenLogprob",
    "TooManyDeliveriesError",
    "TopLogprob",
    "Usage",
]
