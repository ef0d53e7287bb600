"""Telling an engine that hangs from one that works."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from promptmill_worker.stall import StallWatch


class Watched:
    """An engine, a watch on it with a limit of two minutes, and a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine = SimpleNamespace(running=3, steps=5)
        self._watch = StallWatch(self.engine, limit_s=120.0, longest_gap_s=4.0, clock=lambda: self.now)

    def stalled_after(self, seconds: float) -> bool:
        self.now += seconds
        return self._watch.stalled()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_an_engine_with_prompts_and_no_steps_stalls_after_the_limit(watched: Watched) -> None:
    assert not any(watched.stalled_after(2.0) for _ in range(60))
    assert watched.stalled_after(0.1)


def test_progress_starts_the_count_anew(watched: Watched) -> None:
    for _ in range(10):
        assert not any(watched.stalled_after(2.0) for _ in range(59))
        watched.engine.steps += 1
        assert not watched.stalled_after(2.0)


def test_an_idle_engine_does_not_stall(watched: Watched) -> None:
    watched.engine.running = 0
    assert not any(watched.stalled_after(4.0) for _ in range(100))
    watched.engine.running = 1
    assert not watched.stalled_after(4.0)


def test_a_process_that_was_stopped_for_an_hour_does_not_blame_its_engine(watched: Watched) -> None:
    assert not watched.stalled_after(3600.0)
    watched.engine.steps += 1
    assert not watched.stalled_after(2.0)
