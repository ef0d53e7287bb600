"""Cutting a text between its tokens: into windows, or off its beginning."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Window", "cut_beginning", "cut_windows"]

#: Of each token its first character, and the one after its last. Tokens that share a character overlap.
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text."""

    #: Its first token, counted in the whole text.
    start: int
    #: The token after its last.
    end: int
    text: str


def cut_windows(text: str, spans: Spans, window_tokens: int, stride_tokens: int) -> list[Window]:
    """All of ``text``, in order: windows of ``window_tokens`` that begin ``stride_tokens`` after one another.

    The last one may be shorter, and none lies in the one before it. A border that would break a character is moved to
    the beginning of it, and what follows goes on from there; only a character of more tokens than a window, or several
    that share a token, make a longer one.

    Args:
        text: What to cut.
        spans: Its tokens.
        window_tokens: Tokens in a window.
        stride_tokens: From the beginning of one window to that of the next: at most ``window_tokens``.
    """
    borders = _Borders(text, spans)
    windows: list[Window] = []
    start = 0
    while True:
        end = borders.ahead(start, window_tokens)
        if not windows or end > windows[-1].end:
            windows.append(Window(start, end, text[borders.character(start) : borders.character(end)]))
        if end == len(spans):
            return windows
        start = borders.ahead(start, stride_tokens)


def cut_beginning(text: str, spans: Spans, tokens: int) -> str:
    """``text`` without its first ``tokens`` tokens, and without all of a character that these would break."""
    borders = _Borders(text, spans)
    return text[borders.character(borders.at_or_after(min(tokens, len(spans)))) :]


class _Borders:
    """Where a text may be cut: a border is the number of tokens before it.

    What lies between two tokens and belongs to none (white space that a tokenizer drops) goes with the later one.
    """

    def __init__(self, text: str, spans: Spans) -> None:
        ends = [0, *accumulate((end for _, end in spans), max)]
        inner = range(1, len(spans))
        self._safe = [0, *(border for border in inner if spans[border][0] >= ends[border]), len(spans)]
        self._characters = [*ends[:-1], len(text)]

    def character(self, border: int) -> int:
        """How many characters lie before a border."""
        return self._characters[border] if border else 0

    def ahead(self, start: int, tokens: int) -> int:
        """The last border within ``tokens`` of ``start``; the next one if there is none so near."""
        safe = self._safe
        return safe[max(bisect_right(safe, start + tokens) - 1, min(bisect_right(safe, start), len(safe) - 1))]

    def at_or_after(self, tokens: int) -> int:
        """The first border with this many tokens before it, or more."""
        return self._safe[bisect_left(self._safe, tokens)]
