"""One request on its way through the running batch, and the texts that grow for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from promptmill.protocol import Choice, FinishReason, GenerationRequest, GenerationResult, Timings, Usage
from promptmill_worker.admission import Admitted
from promptmill_worker.detokenizer import Detokenizer, StopFinder, whole_text
from promptmill_worker.engine import OnText

__all__ = ["Generation", "Sequence"]


class Sequence:
    """One choice of a request while its tokens come in; lives on the loop's thread, but for ``text_so_far``.

    Args:
        name: Unique in the running batch.
        index: Number of the choice.
        generation: The request that it belongs to.
        decode: Decodes a list of token ids.
        on_text: Told the text as it grows.
    """

    def __init__(
        self,
        name: str,
        index: int,
        generation: Generation,
        decode: Callable[[list[int]], str],
        on_text: OnText | None = None,
    ) -> None:
        self.name = name
        self.index = index
        self.generation = generation
        self._decode = decode
        self._token_ids: list[int] = []
        sampling = generation.request.sampling
        self._keeps_end = sampling.include_stop_str_in_output
        detokenizer = Detokenizer(decode)
        #: Only for those that need the text while it grows.
        self._detokenizer = detokenizer if sampling.stop or on_text else None
        self._stops = StopFinder(sampling.stop, self._keeps_end, detokenizer) if sampling.stop else None
        self._on_text = on_text
        #: Characters that ``on_text`` was told.
        self._told = 0

    def advance(self, token_ids: list[int], finished: bool) -> Choice | None:
        """Takes all tokens so far.

        Args:
            token_ids: The tokens generated since the beginning.
            finished: Whether the loop has ended this sequence.

        Returns:
            The choice, once its text has ended.
        """
        new, self._token_ids = token_ids[len(self._token_ids) :], token_ids
        ended = finished and token_ids[-1] in self.generation.admitted.end_ids
        if ended and not self._keeps_end:
            token_ids, new = token_ids[:-1], new[:-1]
        if self._stops is not None and (text := self._stops.add(new)) is not None:
            return self._choice(text, "stop")
        if self._detokenizer is not None and self._stops is None:
            self._detokenizer.add(new)
        if finished:
            return self._choice(self._whole_text(token_ids), "stop" if ended else "length")
        if self._on_text is not None and self._detokenizer is not None:
            text = self._detokenizer.text
            self._tell(text if self._stops is None else text[: self._stops.sure])
        return None

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, with the one or those that ended the text."""
        return len(self._token_ids)

    def text_so_far(self) -> str:
        """The text of the tokens so far, up to its last whole character; any thread may call it."""
        detokenizer = Detokenizer(self._decode)
        for token_id in self._token_ids:
            detokenizer.add([token_id])
        return detokenizer.text

    def _whole_text(self, token_ids: list[int]) -> str:
        if self._detokenizer is None:
            return whole_text(self._decode, token_ids)
        self._detokenizer.flush()
        return self._detokenizer.text

    def _tell(self, text: str) -> None:
        """Tells what is new in ``text``, of which no character goes away again."""
        if self._on_text is not None and len(text) > self._told:
            self._on_text(self.index, text[self._told :])
            self._told = len(text)

    def _choice(self, text: str, finish_reason: FinishReason) -> Choice:
        self._tell(text)
        return Choice(index=self.index, text=text, finish_reason=finish_reason)


class Generation:
    """One request, its future and its sequences.

    The future stays pending until it ends, because a running one can't be cancelled.

    Args:
        request: What was asked.
        admitted: The same in tokens.
        model: What the result calls the model.
        decode: Decodes a list of token ids, for this request's parameters.
        name: Unique in its engine.
        on_text: See ``Engine.submit``.
    """

    def __init__(
        self,
        request: GenerationRequest,
        admitted: Admitted,
        model: str,
        decode: Callable[[list[int]], str],
        name: str,
        on_text: OnText | None = None,
    ) -> None:
        self.request = request
        self.admitted = admitted
        self.future: Future[GenerationResult] = Future()
        self._model = model
        self._submitted_at = time.perf_counter()
        self._first_token_at: float | None = None
        self._choices: dict[int, Choice] = {}
        self.sequences = [
            Sequence(f"{name}.{index}", index, self, decode, on_text) for index in range(request.sampling.n)
        ]

    def saw_token(self) -> None:
        """Notes when the first token of any choice came."""
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()

    def end(self, choice: Choice) -> bool:
        """Takes a finished choice, and resolves the future with the last one; returns whether it was the last."""
        self._choices[choice.index] = choice
        if len(self._choices) < len(self.sequences):
            return False
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self._result())
        return True

    def partial_text(self) -> str:
        """The text of the first choice so far; any thread may call it."""
        ended = self._choices.get(0)
        return self.sequences[0].text_so_far() if ended is None else ended.text

    def fail(self, error: BaseException) -> None:
        """Ends the future with ``error``, unless it was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _result(self) -> GenerationResult:
        now = time.perf_counter()
        first = self._first_token_at or now
        return GenerationResult(
            model=self._model,
            choices=tuple(self._choices[sequence.index] for sequence in self.sequences),
            usage=Usage(
                prompt_tokens=len(self.admitted.prompt_ids),
                completion_tokens=sum(sequence.completion_tokens for sequence in self.sequences),
            ),
            timings=Timings(time_to_first_token_s=first - self._submitted_at, generation_s=now - self._submitted_at),
        )
