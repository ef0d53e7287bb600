"""Deltas from what workers sent."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from promptmill import Choice, Delta, GenerationResult
from promptmill.delta import Deltas, SentPiece

Told = list[tuple[str, int, bool]]


def sent(run: str, offset: int, text: str, repeats: bool = True, choice: int = 0) -> SentPiece:
    return SentPiece(run, choice, offset, repeats, text)


def answer(*texts: str) -> GenerationResult:
    return GenerationResult(
        choices=tuple(Choice(index=index, text=text, finish_reason="stop") for index, text in enumerate(texts))
    )


def told(pieces: list[SentPiece], *texts: str) -> Told:
    """What a reader gets of ``pieces``, and of the answer that follows."""
    deltas = Deltas()
    read = [delta for piece in pieces for delta in deltas.of(piece)]
    if texts:
        read += deltas.rest_of(answer(*texts))
    return [(str(delta), delta.choice, delta.restarted) for delta in read]


def test_a_delta_is_a_string_that_knows_its_choice_also_when_it_is_pickled() -> None:
    delta = pickle.loads(pickle.dumps(Delta("text", 3, restarted=True)))
    assert (delta, delta.choice, delta.restarted, type(delta)) == ("text", 3, True, Delta)


def test_choices_grow_side_by_side() -> None:
    pieces = [sent("1", 0, "a"), sent("1", 0, "x", choice=1), sent("1", 1, "b"), sent("1", 1, "y", choice=1)]
    assert told(pieces) == [("a", 0, False), ("x", 1, False), ("b", 0, False), ("y", 1, False)]


def test_what_came_already_does_not_come_again() -> None:
    assert told([sent("1", 0, "ab"), sent("1", 0, "abc"), sent("1", 1, "b"), sent("1", 3, "d")]) == [
        ("ab", 0, False),
        ("c", 0, False),
        ("d", 0, False),
    ]


def test_a_new_run_that_repeats_goes_on_where_the_last_one_ended() -> None:
    pieces = [sent("1", 0, "one "), sent("1", 4, "two"), sent("2", 0, "on"), sent("2", 2, "e two th")]
    assert told(pieces, "one two three") == [
        ("one ", 0, False),
        ("two", 0, False),
        (" th", 0, False),
        ("ree", 0, False),
    ]


def test_a_new_run_that_does_not_repeat_begins_anew_even_if_it_begins_alike() -> None:
    pieces = [sent("1", 0, "one", repeats=False), sent("2", 0, "on", repeats=False), sent("2", 2, "ce", repeats=False)]
    assert told(pieces, "once") == [("one", 0, False), ("on", 0, True), ("ce", 0, False)]


def test_a_run_that_was_to_repeat_and_does_not_begins_anew() -> None:
    assert told([sent("1", 0, "one two"), sent("2", 0, "one "), sent("2", 4, "too")], "one too") == [
        ("one two", 0, False),
        ("one too", 0, True),
    ]


def test_a_run_of_which_nothing_was_read_needs_no_restart() -> None:
    assert told([sent("2", 0, "text", repeats=False)], "text") == [("text", 0, False)]


def test_what_the_stream_has_lost_comes_with_the_answer() -> None:
    assert told([sent("1", 0, "one "), sent("1", 8, "three")], "one two three") == [
        ("one ", 0, False),
        ("two three", 0, False),
    ]
    assert told([sent("1", 900, "the end")], "one", "two") == [("one", 0, False), ("two", 1, False)]


def test_an_answer_that_is_another_text_voids_what_was_read() -> None:
    assert told([sent("1", 0, "one")], "two") == [("one", 0, False), ("two", 0, True)]
    assert told([sent("1", 0, "one")], "") == [("one", 0, False), ("", 0, True)]


PIECES = st.builds(
    SentPiece,
    run=st.sampled_from("123"),
    choice=st.integers(0, 1),
    offset=st.integers(0, 6),
    repeats=st.booleans(),
    text=st.text("ab", max_size=4),
)


@given(st.lists(PIECES, max_size=12), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_whatever_came_the_deltas_since_the_last_restart_join_to_the_answer(
    pieces: list[SentPiece], first: str, second: str
) -> None:
    joined = {0: "", 1: ""}
    for text, choice, restarted in told(pieces, first, second):
        joined[choice] = text if restarted else joined[choice] + text
    assert joined == {0: first, 1: second}
