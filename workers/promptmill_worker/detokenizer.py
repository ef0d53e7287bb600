"""Text from tokens as they come, and the search for stop strings in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer", "StopFinder", "whole_text"]

#: What a decoder shows for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"

#: How many tokens wait for more before they are taken as they are, or what never becomes a character would be decoded
#: again and again; and how many of the last may still be a part of one.
MOST_HELD, _OF_ONE_CHARACTER = 32, 4


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
        end = len(self._ids)
        return self._take(self._held(end), end)

    def _add(self, token_id: int) -> str:
        self._ids.append(token_id)
        end = len(self._ids)
        piece = self._held(end)
        if piece and not piece.endswith(_REPLACEMENT):
            return self._take(piece, end)
        if end - self._done < MOST_HELD:
            return ""
        end -= _OF_ONE_CHARACTER
        piece = self._held(end)
        if not piece:  # tokens that are no text
            del self._ids[self._done : end]
        return self._take(piece, end)

    def _held(self, end: int) -> str:
        """The text of the tokens from the last sure boundary to ``end``."""
        before = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context : end])[len(before) :]

    def _take(self, piece: str, end: int) -> str:
        if piece:
            self._context, self._done = self._done, end
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
        min_tokens: A stop string that is complete before so many tokens ends nothing.
    """

    def __init__(self, stop: Sequence[str], include: bool, detokenizer: Detokenizer, min_tokens: int = 0) -> None:
        self._stop = stop
        self._include = include
        self._detokenizer = detokenizer
        self._tokens_to_wait = min_tokens
        self._longest = max(len(string) for string in stop)

    def add(self, token_ids: Sequence[int]) -> str | None:
        """The whole text up to the first stop string, once there is one."""
        piece = self._detokenizer.add(token_ids)
        self._tokens_to_wait -= len(token_ids)
        if not piece or self._tokens_to_wait > 0:
            return None
        text = self._detokenizer.text
        # From where on a string would end in the new piece.
        starts = {string: max(0, len(text) - len(piece) - len(string) + 1) for string in self._stop}
        hits = [(at, string) for string, start in starts.items() if (at := text.find(string, start)) >= 0]
        if not hits:
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
