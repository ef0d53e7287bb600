"""The tables of benchmarks/queues are made of the figures that they are given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "queues"))

import queue_table
import scale_table

MANY = {
    "promptmill, map": [{"submitted_s": 1, "answered_s": 1}, {"submitted_s": 1, "answered_s": 2}],
    "promptmill, one by one": [{"submitted_s": 2, "answered_s": 10}, {"submitted_s": 2, "answered_s": 10}],
    "celery": [{"submitted_s": 3, "answered_s": 8}, {"submitted_s": 3, "answered_s": 9}],
    "huey": [{"submitted_s": 4, "answered_s": 4}, {"submitted_s": 4, "answered_s": 5}],
}
RESULTS = {
    "tasks": 1000,
    "queues": {"celery": "5.7.0"},
    "many": MANY,
    "alone": {"celery": [{"median_ms": 2.0, "p99_ms": 5.0}, {"median_ms": 3.0, "p99_ms": 6.0}]},
}

ROW = {
    "prompts": 800,
    "idle": {"broker": 0.01, "client": 0.0, "workers": 0.02, "bytes": 1000.0},
    "busy": {"broker": 0.05, "client": 0.02, "workers": 0.1, "bytes": 161_000.0},
}


def test_a_ratio_is_the_median_of_the_rounds_and_the_fastest_is_each_rounds_own() -> None:
    found = queue_table.ratios(RESULTS)
    assert found["chunks ÷ the fastest of the others"] == pytest.approx((4 / 1 + 5 / 2) / 2)
    assert found["one by one ÷ celery"] == pytest.approx((0.8 + 0.9) / 2)


def test_without_other_queues_there_is_no_ratio() -> None:
    ours = {name: rounds for name, rounds in MANY.items() if "," in name}
    assert queue_table.ratios({**RESULTS, "many": ours}) == {}


def test_a_row_shows_medians_and_their_spread() -> None:
    table = queue_table.markdown(RESULTS)
    assert "| celery 5.7.0 | 333 (333 to 333) | 118 (111 to 125) | 2.50 ms | 5.50 ms |" in table


def test_what_a_prompt_costs_is_without_what_idle_workers_cost() -> None:
    costs = scale_table.Costs({"rows": [{**ROW, "workers": 2, "took_s": 10.0}]})
    assert costs.of_prompt("broker") == pytest.approx(0.0005)
    assert costs.of_prompt("bytes") == pytest.approx(2000)
    assert costs.of_idle_worker("workers") == pytest.approx(0.01)
    assert costs.most_workers(40.0) == pytest.approx(1 / (40 * 0.0005 + 0.005))


def test_throughput_is_set_in_relation_to_the_first_row() -> None:
    rows = [{**ROW, "workers": 1, "took_s": 20.0}, {**ROW, "workers": 2, "took_s": 12.5}]
    assert "| 2 | 64 | 0.80 | 0.05 | 0.02 | 0.10 | 0.02 |" in scale_table.markdown(
        {"rows": rows, "prompts_per_s_of_one": 40.0}
    )
