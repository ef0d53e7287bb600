"""Everything that can go wrong, at once, with an account of every prompt; see ``storm``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from storm import run_storm
from storm_outcome import Outcome
from storm_plan import Plan

#: STORM_SEED, STORM_PROMPTS and STORM_SECONDS in the environment set these.
SEED = os.environ.get("STORM_SEED")
PROMPTS = int(os.environ.get("STORM_PROMPTS", "100000"))
SECONDS = float(os.environ.get("STORM_SECONDS", "900"))

#: Dead workers are found out sooner than by default, so that a test is short.
HASTY = ("--lease-s", "2", "--beat-s", "0.5", "--sweep-s", "0.5", "--sweep-grace-s", "1.5")


def check(outcome: Outcome, plan: Plan) -> None:
    """What must hold after every storm."""
    for fate in ("wrong", "not asked for", "twice", "lost", "stuck"):
        assert outcome.sum(fate) == 0, f"{fate}\n{outcome}"
    assert outcome.keys_left == []
    assert outcome.messages_left == {}
    assert outcome.failures == []
    assert (outcome.innocent_letters, outcome.missing_letters) == (0, set())
    assert outcome.sum("stopped") == plan.poison
    assert outcome.sum("cancelled") > 0
    for fault, times in plan.faults.items():
        assert outcome.faults[fault] >= 0.7 * times, f"{fault} came too seldom: this storm has shown too little"
    # A message that a worker pops as it is killed or cut off, and is no more than a message yet.
    assert outcome.sum("never taken") <= outcome.starts


def test_a_small_storm_loses_nothing_and_answers_nothing_twice(tmp_path: Path) -> None:
    plan = Plan(
        seed=SEED or "1",
        prompts=1500,
        seconds=15.0,
        faults={
            "kill_worker": 4,
            "terminate_worker": 1,
            "stop_worker": 1,
            "hold_busy": 1,
            "kill_client": 1,
            "kill_broker": 1,
            "delete_queue": 2,
            "publish_twice": 2,
        },
        poison=1,
        plain_calls=20,
        quitting_maps=1,
        quiet_s=40.0,
        options=HASTY,
        lease_s=2.0,
        cut_s=(3.0, 4.0),
        largest_chunk=32,
    )
    outcome = run_storm(plan, tmp_path, print)
    print(outcome)
    check(outcome, plan)


@pytest.mark.soak
def test_a_long_storm_loses_nothing_and_answers_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(
        seed=SEED or secrets.token_hex(4),
        prompts=PROMPTS,
        seconds=SECONDS,
        faults={
            fault: max(1, round(times * SECONDS / 900))
            for fault, times in {
                "kill_worker": 60,
                "terminate_worker": 8,
                "stop_worker": 8,
                "reset_busy": 6,
                "hold_busy": 6,
                "hold_idle": 6,
                "kill_client": 8,
                "kill_broker": 6,
                "delete_queue": 15,
                "publish_twice": 15,
            }.items()
        },
        poison=5,
        plain_calls=max(20, PROMPTS // 200),
        quitting_maps=2,
        quiet_s=600.0,
        celery_quiet_s=90.0,
    )
    with capsys.disabled():
        outcome = run_storm(plan, tmp_path, print)
        print(f"\n{outcome}\n")
    check(outcome, plan)
