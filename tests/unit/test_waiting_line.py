"""In which order prompts go into the engine."""

from __future__ import annotations

from promptmill.names import Priority
from promptmill_worker.waiting_line import MOST_PASSED, WaitingLine


def all_of(line: WaitingLine[str]) -> list[str]:
    return [line.pop() for _ in range(len(line))]


def test_priority_goes_before_turn_and_turn_before_arrival() -> None:
    line: WaitingLine[str] = WaitingLine()
    line.push("low", Priority.LOW, 0.0)
    line.push("late turn", Priority.NORMAL, 9.0)
    line.push("came first", Priority.NORMAL, 2.0)
    line.push("came second", Priority.NORMAL, 2.0)
    line.push("early turn", Priority.NORMAL, 1.0)
    line.push("high", Priority.HIGH, 50.0)
    assert all_of(line) == ["high", "early turn", "came first", "came second", "late turn", "low"]


def test_one_that_is_passed_again_and_again_has_its_turn() -> None:
    line: WaitingLine[str] = WaitingLine()
    line.push("normal", Priority.NORMAL, 0.0)
    line.push("low", Priority.LOW, 0.0)
    for _ in range(3 * MOST_PASSED):
        line.push("high", Priority.HIGH, 0.0)
    order = all_of(line)
    assert [order.index("normal"), order.index("low")] == [MOST_PASSED, 2 * MOST_PASSED + 1]


def test_a_single_urgent_one_is_never_held_up_by_those_that_were_passed_before() -> None:
    line: WaitingLine[str] = WaitingLine()
    for _ in range(3 * MOST_PASSED):
        line.push("low", Priority.LOW, 0.0)
        line.push("low", Priority.LOW, 0.0)
        line.push("high", Priority.HIGH, 0.0)
        assert [line.pop(), line.pop()] == ["high", "low"]


def test_one_that_leaves_is_not_popped_and_the_others_keep_their_order() -> None:
    line: WaitingLine[str] = WaitingLine()
    for number in range(9):
        line.push(str(number), Priority.NORMAL, float(number * 7 % 9))
    line.push("low", Priority.LOW, 0.0)
    for gone in ("4", "7", "low", "never there"):
        line.remove(gone)
    assert all_of(line) == sorted("0123568", key=lambda number: int(number) * 7 % 9)
    assert len(line) == 0


def test_clearing_gives_all_of_them() -> None:
    line: WaitingLine[str] = WaitingLine()
    line.push("low", Priority.LOW, 0.0)
    line.push("high", Priority.HIGH, 0.0)
    assert sorted(line.clear()) == ["high", "low"]
    assert len(line) == 0
