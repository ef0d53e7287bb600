"""The text of one sequence, told piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from promptmill.protocol import GenerationRequest
from promptmill_worker.admission import Admitted
from promptmill_worker.detokenizer import whole_text
from promptmill_worker.generation import Generation

Decode = Callable[[list[int]], str]

END = 0


def by_bytes(token_ids: list[int]) -> str:
    """A byte is a token."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def sentencepieces() -> Decode:
    """As of Llama 2: a mark for a space, bytes for what is no word, and the first space goes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary.update({word: 256 + number for number, word in enumerate(["▁", "▁the", "▁▁", "the", "é", "日本", "."])})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer.decode


by_sentencepieces = sentencepieces()


def tell(decode: Decode, token_ids: list[int], ended: bool = False, **sampling: Any) -> tuple[list[str], str]:
    """The pieces that are told of ``token_ids``, and the text of the choice."""
    told: list[str] = []
    generation = Generation(
        GenerationRequest.of("a", **sampling),
        Admitted([1], 99, frozenset([END])),
        "demo",
        decode,
        "0",
        lambda _, text: told.append(text),
    )
    for count in range(1, len(token_ids) + 1):
        is_last = count == len(token_ids)
        choice = generation.sequences[0].advance(token_ids[:count] + [END] * (is_last and ended), finished=is_last)
        if choice is not None:
            return told, choice.text
    raise AssertionError("it has no end")


def untold(decode: Decode, token_ids: list[int], **sampling: Any) -> str:
    """The text of ``token_ids`` where nobody is told of it."""
    generation = Generation(
        GenerationRequest.of("a", **sampling), Admitted([1], 99, frozenset([END])), "demo", decode, "0"
    )
    choice = generation.sequences[0].advance(token_ids, finished=True)
    assert choice is not None
    return choice.text


BYTES = st.lists(st.integers(1, 255), min_size=1, max_size=40)
#: Bytes that make characters more often than chance would have it.
CHARACTERS = st.lists(st.sampled_from("añ日🦆\ufffd \u0301"), min_size=1, max_size=20).map(
    lambda characters: list("".join(characters).encode())
)
CUT = st.tuples(CHARACTERS, st.integers(0, 3)).map(lambda cut: cut[0][: len(cut[0]) - cut[1]] or [97])
SENTENCEPIECES = st.lists(st.one_of(st.integers(256, 262), st.integers(1, 255)), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("decode", "tokens"), [(by_bytes, BYTES), (by_bytes, CUT), (by_sentencepieces, SENTENCEPIECES)]
)
def test_whatever_a_model_emits_the_pieces_join_to_the_text_that_an_unstreamed_request_gets(
    decode: Decode, tokens: st.SearchStrategy[list[int]]
) -> None:
    @given(tokens)
    def check(token_ids: list[int]) -> None:
        pieces, text = tell(decode, token_ids)
        assert "".join(pieces) == text == untold(decode, token_ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])
        if "\ufffd" not in decode(token_ids):
            assert text == decode(token_ids)

    check()


def test_bytes_that_make_no_character_spoil_no_neighbour() -> None:
    token_ids = [*"日".encode(), 0xE6, 257]
    assert by_sentencepieces(token_ids).startswith("\ufffd\ufffd\ufffd")
    assert whole_text(by_sentencepieces, token_ids).startswith("日")


def test_a_character_that_is_cut_in_half_by_the_end_is_told_as_it_is_in_the_text() -> None:
    assert tell(by_bytes, list("ok 🦆".encode())[:-1]) == (["o", "k", " ", "\ufffd"], "ok \ufffd")


@pytest.mark.parametrize("keeps", [False, True])
def test_the_beginning_of_a_stop_string_is_told_only_once_it_is_none(keeps: bool) -> None:
    pieces, text = tell(by_bytes, list(b"so </ a </s> b"), stop=["</s>", " b"], include_stop_str_in_output=keeps)
    assert text == ("so </ a </s>" if keeps else "so </ a ")
    assert pieces == ["s", "o", " ", "</", " a", " ", *(["</s>"] if keeps else [])]


def test_what_was_held_back_is_told_at_the_end() -> None:
    assert tell(by_bytes, list(b"a <"), stop="</s>") == (["a", " ", "<"], "a <")


def test_a_token_that_ends_the_text_is_not_told() -> None:
    assert tell(by_bytes, list(b"ab"), ended=True) == (["a", "b"], "ab")


@given(
    st.text("abé", min_size=1, max_size=30),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
def test_no_stop_string_is_ever_told(text: str, stop: list[str], keeps: bool) -> None:
    pieces, final = tell(by_bytes, list(text.encode()), stop=stop, include_stop_str_in_output=keeps)
    assert "".join(pieces) == final
    assert text.startswith(final)
    if not keeps:
        assert not any(string in final for string in stop)
