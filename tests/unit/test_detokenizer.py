"""Text from tokens, piece by piece, and stop strings in it."""

from __future__ import annotations

import pytest

from promptmill_worker.detokenizer import Detokenizer, StopFinder

TEXT = "Grüße! 你好 🙂 done\ufffd, ok"


def decode(token_ids: list[int]) -> str:
    """A byte is a token, the hardest case."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def test_the_pieces_join_to_the_text_and_no_piece_ends_in_half_a_character() -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.add([token]) for token in TEXT.encode()]
    assert "".join(pieces) == detokenizer.text == TEXT
    assert all(piece.count("\ufffd") <= TEXT.count("\ufffd") for piece in pieces)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("好 🙂",), "Grüße! 你"),
        (("one", "done"), "Grüße! 你好 🙂 "),
        (("nowhere", "ße"), "Grü"),
        (("G",), ""),
        (("ok",), "Grüße! 你好 🙂 done\ufffd, "),
    ],
)
def test_a_stop_string_is_found_however_it_falls_into_tokens(stop: tuple[str, ...], expected: str, width: int) -> None:
    tokens = list(TEXT.encode())
    for include in (False, True):
        finder = StopFinder(stop, include, Detokenizer(decode))
        found = None
        for start in range(0, len(tokens), width):
            found = finder.add(tokens[start : start + width])
            if found is not None:
                break
        ended_by = next(s for s in stop if TEXT.startswith(s, len(expected)))
        assert found == (expected + ended_by if include else expected)


def test_without_the_stop_string_nothing_is_found() -> None:
    finder = StopFinder(("never",), False, Detokenizer(decode))
    assert all(finder.add([token]) is None for token in TEXT.encode())
