from __future__ import annotations

from promptmill.chunk_size import CHUNK_BYTES, LARGEST_CHOICE, ChunkSizer


def sizes(total: int, batches: list[int], known: bool = True) -> list[int]:
    """The chunks that a map over ``total`` small prompts makes."""
    sizer = ChunkSizer(None, None, total if known else None)
    chosen = []
    while sum(chosen) < total:
        size = min(sizer.next(batches), total - sum(chosen))
        sizer.note(size, 100 * size)
        chosen.append(size)
    return chosen


def test_what_the_user_says_is_done() -> None:
    sizer = ChunkSizer(max_in_flight=100, chunk_size=7, total=None)
    assert (sizer.window([32]), sizer.next([32])) == (100, 7)
    assert ChunkSizer(max_in_flight=5, chunk_size=64, total=None).next([32]) == 5


def test_one_worker_gets_large_chunks_and_many_share_the_window() -> None:
    assert set(sizes(10_000, [32], known=False)[:-1]) == {LARGEST_CHOICE}
    assert sizes(10_000, [32] * 4, known=False)[0] == 64
    assert ChunkSizer(None, None, None).next([]) == LARGEST_CHOICE


def test_the_window_grows_with_the_fleet() -> None:
    sizer = ChunkSizer(None, None, None)
    assert sizer.window([]) == sizer.window([32]) == 1024
    assert sizer.window([64] * 10) == 5120
    assert sizer.window([64] * 10) // sizer.next([64] * 10) >= 40


def test_more_prompts_than_were_told_of_travel_together_as_well() -> None:
    for total in (0, 5_000):
        sizer = ChunkSizer(None, None, total)
        sizer.note(5_000, 500_000)
        assert sizer.next([32] * 2) == 128


def test_towards_a_known_end_no_worker_is_left_with_much() -> None:
    for workers in (2, 5, 16):
        chunks = sizes(3000, [32] * workers)
        assert sum(chunks) == 3000
        assert max(chunks[-2 * workers :]) <= 8
        assert len(chunks) < 3000 / 64 + 40 * workers
    assert len(sizes(660, [32])) == 3


def test_long_prompts_travel_in_small_chunks() -> None:
    sizer = ChunkSizer(None, None, None)
    for _ in range(100):
        size = sizer.next([32])
        sizer.note(size, 10_000 * size)
    assert sizer.next([32]) == CHUNK_BYTES // 10_000
    for _ in range(100):
        sizer.note(1, 1_000_000)
    assert sizer.next([32]) == 1
