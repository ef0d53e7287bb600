"""Pieces of text, as whoever reads a stream gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from promptmill.protocol import GenerationResult

__all__ = ["Delta", "Deltas", "SentPiece"]


class Delta(str):
    """A piece of generated text: a ``str`` that continues what came before.

    Attributes:
        choice: Number of the choice that it belongs to; 0 unless ``n`` is more than 1.
        restarted: Whether all that came before for this choice is void, and its text begins anew with this piece (which
            may be empty): a worker was lost, and the text can't be made again as it was.
    """

    choice: int
    restarted: bool

    def __new__(cls, text: str = "", choice: int = 0, restarted: bool = False) -> Delta:
        """A piece of a choice's text."""
        delta = super().__new__(cls, text)
        delta.choice = choice
        delta.restarted = restarted
        return delta


@dataclass(frozen=True, slots=True)
class SentPiece:
    """A piece as a worker sent it; it may come twice, and with it what came before."""

    #: The claim that it comes from: another one is another worker, or another try.
    run: str
    choice: int
    #: Characters of that run's text before it.
    offset: int
    #: Whether this run gives the same text as one before it, as the request is greedy or has a seed.
    repeats: bool
    text: str


class Deltas:
    """Makes deltas of what workers sent, for one reader.

    Whatever came, and in whatever pieces: at the end the deltas of each choice since its last restart join to its text.
    """

    def __init__(self) -> None:
        #: For each choice, what its deltas have come to.
        self._texts: dict[int, str] = {}
        self._runs: dict[int, str] = {}

    def of(self, piece: SentPiece) -> Iterator[Delta]:
        """What is new in ``piece``."""
        known, restarted = self._texts.get(piece.choice, ""), False
        if self._runs.get(piece.choice) != piece.run:
            self._runs[piece.choice] = piece.run
            if known and not piece.repeats:
                known, restarted = "", True
        if piece.offset > len(known):  # what belongs in between is lost: the answer will have it
            new = ""
        elif piece.text.startswith(again := known[piece.offset : piece.offset + len(piece.text)]):
            new = piece.text[len(again) :]
        else:  # it should have been the same; another processor may have rounded another way
            known, new, restarted = "", known[: piece.offset] + piece.text, True
        yield from self._told(piece.choice, known, new, restarted)

    def rest_of(self, result: GenerationResult) -> Iterator[Delta]:
        """What is still to come once the answer is there."""
        for choice in result.choices:
            known = self._texts.get(choice.index, "")
            if choice.text.startswith(known):
                yield from self._told(choice.index, known, choice.text[len(known) :], restarted=False)
            else:
                yield from self._told(choice.index, "", choice.text, restarted=True)

    def _told(self, choice: int, known: str, new: str, restarted: bool) -> Iterator[Delta]:
        self._texts[choice] = known + new
        if new or restarted:
            yield Delta(new, choice, restarted)
