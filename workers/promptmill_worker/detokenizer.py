"""Text from tokens as they come, and the search for stop strings in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer", "StopFinder", "whole_text"]

#: What a decoder shows for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns a growing list of tokens into text, piece by piece, with no broken character and no lost space.

    A token is decoded together with those before it back to the last sure boundary, because what a token means
    (a space in front, half of a character) depends on its neighbours. The method is that of Hugging Face's
    text-generation-inference.

    Args:
        decode: Decodes a list of token ids.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0
        self._done = 0
        #: All the text so far; bytes that may still become a character are held back.
        self.text = ""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that ``token_ids`` add; "" while a character is incomplete."""
        # One by one: where tokens are no characters, what becomes of them hangs on where they are cut.
        return "".join([self._add(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """The text of what was held back, now that nothing follows."""
        return self._take(self._held())

    def _add(self, token_id: int) -> str:
        self._ids.append(token_id)
        piece = self._held()
        return "" if piece.endswith(_REPLACEMENT) else self._take(piece)

    def _held(self) -> str:
        """The text of the tokens since the last sure boundary."""
        before = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _take(self, piece: str) -> str:
        if piece:
            self._context, self._done = self._done, len(self._ids)
            self.text += piece
        return piece


def whole_text(decode: Callable[[list[int]], str], token_ids: list[int]) -> str:
    """The text that a ``Detokenizer`` makes of ``token_ids``, at the cost of one call where that gives the same.

    It may not where bytes make no character: some decoders then spoil their neighbours as well.
    """
    text = decode(token_ids)
    if _REPLACEMENT not in text:
        return text
    detokenizer = Detokenizer(decode)
    detokenizer.add(token_ids)
    detokenizer.flush()
    return detokenizer.text


class StopFinder:
    """Looks for stop strings in a text that grows token by token, also where they span tokens.

    Args:
        stop: The strings that end the text.
        include: Leave the stop string at the end of the text.
        detokenizer: Where the text comes from.
    """

    def __init__(self, stop: Sequence[str], include: bool, detokenizer: Detokenizer) -> None:
        self._stop = stop
        self._include = include
        self._detokenizer = detokenizer
        self._longest = max(len(string) for string in stop)

    def add(self, token_ids: Sequence[int]) -> str | None:
        """The whole text up to the first stop string, once there is one."""
        piece = self._detokenizer.add(token_ids)
        text = self._detokenizer.text
        start = max(0, len(text) - len(piece) - self._longest + 1)
        found = [(text.find(string, start), string) for string in self._stop]
        hits = [(at, string) for at, string in found if at >= 0]
        if not piece or not hits:
            return None
        at, string = min(hits, key=lambda hit: hit[0])
        return text[: at + len(string)] if self._include else text[:at]

    @property
    def sure(self) -> int:
        """How many characters of the text no stop string can take away any more: its end may be one's beginning."""
        text = self._detokenizer.text
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[at:]
            if any(string.startswith(tail) for string in self._stop):
                return at
        return len(text)
