"""Where texts are cut: the texts here are of made-up tokens, in which a character may be several of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from promptmill_worker.windows import Spans, Window, cut_beginning, cut_windows

#: Of each token how many characters it has; of a character that is several tokens, how many, as a negative number.
Layout = list[int]

layouts = st.lists(st.sampled_from([1, 1, 1, 2, 5, -2, -3, -4]), max_size=60)
#: Window and stride.
sizes = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


def laid_out(layout: Layout) -> tuple[str, Spans]:
    """A text of that layout, and its tokens."""
    spans, at = [], 0
    for size in layout:
        spans += [(at, at + size)] if size > 0 else [(at, at + 1)] * -size
        at += max(size, 1)
    return "".join(chr(0x1F600 + i) for i in range(at)), spans


def plain(tokens: int) -> tuple[str, Spans]:
    return laid_out([1] * tokens)


def places(windows: list[Window]) -> list[tuple[int, int]]:
    return [(window.start, window.end) for window in windows]


@given(layouts, sizes)
def test_windows_cover_the_text_in_order_and_none_lies_in_the_one_before(layout: Layout, size: tuple[int, int]) -> None:
    text, spans = laid_out(layout)
    windows = cut_windows(text, spans, *size)
    assert windows[0].start == 0
    assert windows[-1].end == len(spans)
    covered = ""
    for window in windows:
        at = spans[window.start][0] if spans else 0
        assert text[at : at + len(window.text)] == window.text
        assert at <= len(covered)  # nothing is skipped
        assert at + len(window.text) > len(covered) or not text  # and something is added
        covered = text[: at + len(window.text)]
    assert covered == text


@given(layouts, sizes)
def test_windows_begin_and_end_between_characters_and_are_longer_only_for_a_single_one(
    layout: Layout, size: tuple[int, int]
) -> None:
    text, spans = laid_out(layout)
    for window in cut_windows(text, spans, *size):
        for border in {window.start, window.end} - {0, len(spans)}:
            assert spans[border - 1][1] <= spans[border][0]
        assert window.end - window.start <= size[0] or len(window.text) == 1


@given(st.integers(0, 60), sizes)
def test_where_no_character_is_broken_windows_overlap_by_window_less_stride_exactly(
    tokens: int, size: tuple[int, int]
) -> None:
    window, stride = size
    found = places(cut_windows(*plain(tokens), window, stride))
    starts = [0]
    while starts[-1] + window < tokens:
        starts.append(starts[-1] + stride)
    assert found == [(start, min(start + window, tokens)) for start in starts]


def test_the_last_window_may_be_shorter_and_is_left_out_when_the_one_before_holds_it() -> None:
    assert places(cut_windows(*plain(10), 4, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert places(cut_windows(*plain(10), 4, 3)) == [(0, 4), (3, 7), (6, 10)]
    assert places(cut_windows(*plain(11), 4, 3)) == [(0, 4), (3, 7), (6, 10), (9, 11)]
    assert places(cut_windows(*plain(3), 4, 1)) == [(0, 3)]
    assert places(cut_windows(*plain(0), 4, 4)) == [(0, 0)]


def test_a_border_within_a_character_moves_to_its_beginning() -> None:
    text, spans = laid_out([1, 1, -3, 1])
    windows = cut_windows(text, spans, 4, 4)
    assert places(windows) == [(0, 2), (2, 6)]
    assert "".join(window.text for window in windows) == text


def test_a_character_of_more_tokens_than_a_window_is_a_window_of_its_own() -> None:
    assert places(cut_windows(*laid_out([1, -4, 1]), 2, 1)) == [(0, 1), (1, 5), (5, 6)]


def test_what_belongs_to_no_token_goes_with_the_next_one_and_at_the_end_with_the_last() -> None:
    windows = cut_windows("  one two  ", [(2, 5), (6, 9)], 1, 1)
    assert [window.text for window in windows] == ["  one", " two  "]


def test_the_beginning_is_cut_off_with_all_of_a_character_that_would_be_broken() -> None:
    text, spans = laid_out([1, -3, 1])
    rests = [len(cut_beginning(text, spans, tokens)) for tokens in range(7)]
    assert rests == [3, 2, 1, 1, 1, 0, 0]
