"""Telling an engine that hangs from one that works."""

from __future__ import annotations

from types import SimpleNamespace

from promptmill_worker.stall import StallWatch


def test_an_engine_with_prompts_and_no_steps_stalls_after_the_limit() -> None:
    now = [0.0]
    engine = SimpleNamespace(running=3, steps=5)
    watch = StallWatch(engine, limit_s=120.0, clock=lambda: now[0])
    now[0] = 120.0
    assert not watch.stalled
    now[0] = 120.1
    assert watch.stalled


def test_progress_starts_the_count_anew() -> None:
    now = [0.0]
    engine = SimpleNamespace(running=3, steps=5)
    watch = StallWatch(engine, limit_s=120.0, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 100.0
        engine.steps += 1
        assert not watch.stalled


def test_an_idle_engine_does_not_stall() -> None:
    now = [0.0]
    engine = SimpleNamespace(running=0, steps=5)
    watch = StallWatch(engine, limit_s=120.0, clock=lambda: now[0])
    now[0] = 10_000.0
    assert not watch.stalled
    engine.running = 1
    assert not watch.stalled
