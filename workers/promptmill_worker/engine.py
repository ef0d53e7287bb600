"""What the worker asks of whatever generates text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from promptmill.errors import PromptmillError
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams
from promptmill_worker.settings import EngineSettings
from promptmill_worker.windows import Spans

__all__ = ["Engine", "EngineDiedError", "EngineInfo", "OnText", "failed"]

#: Told (number of the choice, new text) of a running request, on the engine's thread: it must not wait, nor raise.
OnText = Callable[[int, str], None]


class EngineDiedError(PromptmillError):
    """The engine has stopped for good; its prompts were not answered and belong back in the queue."""


def failed(error: Exception) -> Future[GenerationResult]:
    """What ``Engine.submit`` returns for a request that never ran."""
    future: Future[GenerationResult] = Future()
    future.set_exception(error)
    return future


class EngineInfo(BaseModel):
    """What an engine says of itself: shown by ``promptmill status`` and at the worker's start."""

    model_config = ConfigDict(frozen=True)

    #: Hub id, folder or file, as it was given.
    model: str
    #: "transformers", "static batches" or "echo".
    engine: str
    #: Why the model runs in static batches.
    reason: str = ""
    #: "cpu", "cuda:0", "mps"; "cuda:0, cpu, disk" where the weights are spread
    device: str = ""
    #: "bfloat16", "float32", "bnb-4bit", …
    precision: str = ""
    #: Attention implementation.
    attention: str = ""
    #: Longest prompt and text together, in tokens.
    context_tokens: int = 0
    #: Tokens whose keys and values fit the cache at once.
    cache_tokens: int = 0
    #: The most requests in one step of the model; less than was set while memory does not suffice for more.
    max_batch: int = 0
    #: Size of the loaded weights, in bytes.
    weights_bytes: int = 0
    #: How many weights there are, those that are tied to others counted once.
    parameters: int = 0
    #: Whether the model has a chat template, without which it takes no messages; None: it needs none.
    chat_template: bool | None = None
    #: Generated tokens a second of one request alone, as measured at the worker's start; 0: not measured.
    tokens_per_s_alone: float = 0.0
    #: The same of ``max_batch`` short requests together.
    tokens_per_s_full: float = 0.0


class Engine(ABC):
    """One loaded model that generates for many requests at once.

    An abstract class rather than a ``Protocol``: the in-process interface (``generate``, ``with``) is written
    here once, on top of what each engine does. All methods may be called from any thread.
    """

    info: EngineInfo

    #: Told the future of a request when one of its choices has ended and others go on: a slot of the batch is free. On
    #: the engine's thread; an engine need not call it.
    on_choice: Callable[[Future[GenerationResult]], None] | None = None

    @classmethod
    def load(cls, model: str, **options: Any) -> Engine:
        """Loads ``model`` and returns an engine that is ready to generate.

        Args:
            model: A hub id, a folder, or a GGUF file.
            options: As the options of ``promptmill worker``: ``device``, ``max_memory``, ``dtype``,
                ``quantization``, ``max_model_len``, ``max_batch``, ``threads``, ``trust_remote_code``, ``revision``,
                ``local_files_only``, ``engine``.

        Raises:
            ModelLoadError: the model can't be loaded; the message says why and what to check.
            InvalidSettingError: an option is unknown or has a value that means nothing.
        """
        from promptmill_worker.loading import load_engine  # torch is imported only where a model is loaded

        return load_engine(EngineSettings.read(model=model, **options))

    @abstractmethod
    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[GenerationResult]:
        """Puts a request into the running batch and returns at once.

        With ``on_text`` its texts are told while they are made: pieces that join to the text of their choice, all told
        before the future ends. No piece ends in half of a character, none holds any of a stop string that is left out.

        The future ends in a result (``id``, ``index``, ``worker``, ``attempts`` and ``queued_s`` left at their
        defaults), or raises PromptTooLongError, InvalidRequestError, EngineError, or EngineDiedError. Cancelling
        the future takes the request out of the batch before the next step.
        """

    @abstractmethod
    def partial_text(self, future: Future[GenerationResult]) -> str:
        """The text generated so far for the request that ``submit`` returned ``future`` for: its first choice's.

        "" if it has not begun, has ended, or is none of this engine's. The text may hold the beginning of a stop
        string, but no half of a character.
        """

    @abstractmethod
    def token_spans(self, text: str) -> Spans:
        """Where the tokens of a text are in it: of each its first character, and the one after its last.

        Raises:
            InvalidRequestError: this tokenizer does not tell.
        """

    @property
    @abstractmethod
    def running(self) -> int:
        """How many submitted requests have not ended yet."""

    @property
    def tokens(self) -> int:
        """How many tokens were generated so far, also for requests that go on; 0 of an engine that can't tell."""
        return 0

    @property
    def cache_used(self) -> float:
        """Share of the cache that is in use, 0 to 1; 0 of an engine that can't tell."""
        return 0.0

    @property
    @abstractmethod
    def steps(self) -> int:
        """A count that grows whenever the engine makes progress; standing still with work to do is a hang."""

    @property
    @abstractmethod
    def failure(self) -> BaseException | None:
        """Why the engine died, or None while it lives."""

    @abstractmethod
    def close(self) -> None:
        """Stops, ends what still runs with EngineDiedError, and gives the memory back. May be called twice."""

    def generate(
        self,
        prompts: Iterable[str | list[dict[str, str]]],
        params: SamplingParams | None = None,
        **overrides: Any,
    ) -> Iterator[GenerationResult]:
        """Results of ``prompts`` in their order, generated together.

        Args:
            prompts: Bare prompts (str) or chats (lists of ``{"role", "content"}``).
            params: Sampling parameters for all of them.
            overrides: Single sampling parameters by name, over ``params``.

        Raises:
            InvalidRequestError: a prompt or a parameter is wrong; nothing was generated.
            TaskFailedError: a prompt failed; the results before it have been yielded.
        """
        requests = [
            GenerationRequest.of(
                prompt if isinstance(prompt, str) else None,
                None if isinstance(prompt, str) else prompt,
                params,
                **overrides,
            )
            for prompt in prompts
        ]
        futures = [self.submit(request) for request in requests]
        try:
            for index, future in enumerate(futures):
                yield future.result().model_copy(update={"index": index})
        finally:
            for future in futures:
                future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
