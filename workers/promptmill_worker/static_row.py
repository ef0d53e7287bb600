"""One choice of a request on its way through static batches."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from promptmill.errors import EngineError
from promptmill.protocol import TokenLogprob
from promptmill_worker.generation import Generation, Sequence
from promptmill_worker.logprobs import TokenChances
from promptmill_worker.sampler import RowSampling

__all__ = ["Row", "rows_of"]


@dataclass(slots=True, eq=False)
class Row:
    """One choice of a request, waiting for a batch or in one."""

    sequence: Sequence
    sampling: RowSampling
    #: What it has generated so far; not empty in a new batch if an earlier one did not fit the memory.
    token_ids: list[int] = field(default_factory=list)
    #: Whether its text has ended.
    ended: bool = False
    #: Log-probabilities of its newest token, if its request asks for them.
    chances: TokenChances | None = None

    @property
    def live(self) -> bool:
        """Whether there is anything to generate for it: not if its text, or its request, has ended."""
        return not self.ended and not self.sequence.generation.future.done()

    @property
    def input_ids(self) -> list[int]:
        """What the model has to read."""
        return self.sequence.generation.admitted.prompt_ids + self.token_ids

    @property
    def room_tokens(self) -> int:
        """How many more tokens it may have."""
        return self.sequence.generation.admitted.max_tokens - len(self.token_ids)

    def add(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Takes its next token, and hands its text to the request if that is the last one."""
        generation = self.sequence.generation
        generation.saw_token()
        # A new list: the sequence tells what is new by comparing it with the one before.
        self.token_ids = [*self.token_ids, token_id]
        finished = self.room_tokens <= 0 or token_id in generation.admitted.end_ids
        try:
            choice = self.sequence.advance(self.token_ids, finished, logprob)
        except Exception as error:  # whatever a tokenizer raises concerns this text alone
            generation.fail(EngineError(f"the text could not be decoded: {type(error).__name__}"))
            return
        if choice is not None:
            self.ended = True
            generation.end(choice)


def rows_of(generation: Generation) -> list[Row]:
    """A row for each choice of a request; without a seed they get one from chance."""
    sampling = generation.request.sampling
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    return [
        Row(sequence, RowSampling.of(sampling, generation.admitted, seed, sequence.index))
        for sequence in generation.sequences
    ]
