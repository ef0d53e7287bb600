"""Text from tokens, piece by piece, and stop strings in it."""

from __future__ import annotations

import pytest

from promptmill_worker.detokenizer import MOST_HELD, Detokenizer, StopFinder, whole_text

TEXT = "Grüße! 你好 🙂 done\ufffd, ok"


def decode(token_ids: list[int]) -> str:
    """A byte is a token, the hardest case."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def test_the_pieces_join_to_the_text_and_no_piece_ends_in_half_a_character() -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.add([token]) for token in TEXT.encode()]
    assert "".join(pieces) == detokenizer.text == TEXT
    assert all(piece.count("\ufffd") <= TEXT.count("\ufffd") for piece in pieces)


@pytest.mark.parametrize("broken", [b"\xff", b"\x80", b"\xf0\x9f\x99"])
def test_what_never_becomes_a_character_is_not_held_for_ever(broken: bytes) -> None:
    longest = 0

    def counted(token_ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(token_ids)

    tokens = [*b"one ", *broken * 500, *"🙂 two 🙂".encode()]
    detokenizer = Detokenizer(counted)
    pieces = [detokenizer.add([token]) for token in tokens]
    assert sum(piece != "" for piece in pieces[:-20]) > 10
    assert longest <= 2 * MOST_HELD
    detokenizer.flush()
    assert detokenizer.text == whole_text(decode, tokens) == decode(tokens)


def test_tokens_that_are_no_text_take_no_time_and_no_space() -> None:
    longest = 0

    def decode_words(token_ids: list[int]) -> str:
        """As SentencePiece: a space before each word, the first one's left out; 0 is a special token."""
        nonlocal longest
        longest = max(longest, len(token_ids))
        return " ".join(f"w{token_id}" for token_id in token_ids if token_id)

    detokenizer = Detokenizer(decode_words)
    assert detokenizer.add([1, 2, *[0] * 500, 3, 0, 4]) == "w1 w2 w3 w4"
    assert longest <= 2 * MOST_HELD


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
