from __future__ import annotations

from typing import Any

import pytest

from promptmill import InvalidRequestError, SamplingParams


def test_the_defaults_are_those_of_the_documentation() -> None:
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.n) == (256, 1.0, 1.0, 0, 1)
    assert (params.seed, params.stop, params.logprobs) == (None, (), None)


@pytest.mark.parametrize(
    ("name", "fine", "wrong"),
    [
        ("max_tokens", [1, 1_000_000], [0, -1, 1_000_001, 1.5, "x", None]),
        ("min_tokens", [0, 5], [-1]),
        ("temperature", [0, 0.0, 2], [-0.01, 2.01, float("nan"), float("inf"), "hot"]),
        ("top_p", [0.01, 1], [0, 1.01, float("nan")]),
        ("top_k", [0, 50], [-1, 0.5]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("n", [1, 128], [0, 129]),
        ("seed", [None, 0, 2**63 - 1], [-1, 2**63]),
        ("stop", ["a", ["a", "b"], (), []], ["", [""], [1], 5, ["x"] * 65, "x" * 257, "\ud800"]),
        ("stop_token_ids", [[], [0, 5]], [[-1], 5, ["x"]]),
        ("logprobs", [None, 0, 20], [-1, 21]),
        ("repetition_penalty", [0.1, 10], [0, 10.1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("logit_bias", [{}, {5: 1.5}, {"5": -100}], [{"x": 1}, {5: 101}, [5]]),
        ("truncate_prompt_tokens", [None, 1], [0]),
        ("window_tokens", [None, 1, 1_000_000], [0, 1.5, 1_000_001]),
        ("ignore_eos", [True, False], ["perhaps"]),
    ],
)
def test_each_parameter_takes_its_range_and_no_more(name: str, fine: list[Any], wrong: list[Any]) -> None:
    for value in fine:
        SamplingParams.of(**{name: value})
    for value in wrong:
        with pytest.raises(InvalidRequestError, match=name):
            SamplingParams.of(**{name: value})


def test_the_message_names_the_field_the_value_and_the_range() -> None:
    with pytest.raises(InvalidRequestError, match=r"^top_p: 1.5 is not allowed \(range: > 0.0 and ≤ 1.0\)$"):
        SamplingParams.of(top_p=1.5)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"^unknown parameter 'max_new_tokens'; known are .*max_tokens"):
        SamplingParams.of(max_new_tokens=5)


def test_stop_strings_are_no_part_of_a_message() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams.of(stop="secret" * 100)
    assert "secret" not in str(caught.value)


def test_single_parameters_win_over_an_object_and_leave_it_as_it_was() -> None:
    params = SamplingParams(max_tokens=5, temperature=0)
    over = SamplingParams.of(params, max_tokens=7)
    assert (over.max_tokens, over.temperature, params.max_tokens) == (7, 0, 5)
    assert SamplingParams.of(params) is params


def test_openais_newer_name_of_max_tokens_is_understood() -> None:
    assert SamplingParams.of(max_completion_tokens=7).max_tokens == 7
    assert SamplingParams.of(SamplingParams(max_tokens=5), max_completion_tokens=7).max_tokens == 7


@pytest.mark.parametrize("params", [{"max_tokens": 5}, 5, "greedy"])
def test_something_else_than_parameters_is_refused(params: Any) -> None:
    with pytest.raises(InvalidRequestError, match="give SamplingParams"):
        SamplingParams.of(params)


def test_parameters_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SamplingParams().max_tokens = 5  # type: ignore[misc]
