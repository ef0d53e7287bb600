from __future__ import annotations

import inspect
from typing import Any

import pytest

from promptmill import GenerationRequest, InvalidRequestError, SamplingParams, errors
from promptmill.idempotency import key_and_digest
from promptmill.protocol import answer_to_wire

CHAT = [{"role": "user", "content": "a"}]


def digest(*arguments: Any, key: str = "k", queue: str = "promptmill.m", **options: Any) -> str:
    return key_and_digest(key, queue, GenerationRequest.of(*arguments, **options))[1]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 256},
        {"max_completion_tokens": 256, "temperature": 1},
        {"params": SamplingParams()},
        {"stop": [], "logit_bias": {}, "seed": None},
        {"stream": True},
    ],
)
def test_what_is_asked_for_by_default_is_the_same_as_by_name(options: dict[str, Any]) -> None:
    assert digest("a", **options) == digest("a")


def test_the_same_parameters_written_otherwise_are_the_same() -> None:
    assert digest("a", stop="x") == digest("a", stop=["x"])
    assert digest("a", logit_bias={1: 1, 2: 2}) == digest("a", logit_bias={2: 2, 1: 1})
    assert digest("a", temperature=0) == digest("a", params=SamplingParams(temperature=0.0))


def test_what_changes_the_answer_and_the_key_itself_change_the_digest() -> None:
    digests = [
        digest("a"),
        digest("b"),
        digest("a", seed=1),
        digest("a", max_tokens=255),
        digest("a", queue="promptmill.n"),
        digest("a", key="l"),
        digest(messages=CHAT),
        digest(messages=[*CHAT, *CHAT]),
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("key", ["a", "order 5: ünï 😀", "x" * 256])
def test_no_key_is_told_to_the_broker(key: str) -> None:
    for told in key_and_digest(key, "promptmill.m", GenerationRequest.of("a")):
        assert len(told) == 64
        int(told, 16)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "idempotency_key: 0 characters .*range: ≥ 1 and ≤ 256"),
        ("hidden" * 50, "idempotency_key: 300 characters"),
        (5, "idempotency_key: .* type int"),
        (b"hidden", "idempotency_key: .* type bytes"),
        ("hidden\ud800", "idempotency_key: character 6 is half of a surrogate pair"),
    ],
)
def test_what_is_no_key_is_named_and_not_shown(key: Any, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why) as caught:
        key_and_digest(key, "promptmill.m", GenerationRequest.of("a"))
    assert "hidden" not in str(caught.value)


def test_every_error_begins_on_the_wire_as_the_ledgers_scripts_expect_it() -> None:
    classes = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.PromptmillError)
    ]
    assert len(classes) > 10
    for each in classes:
        assert answer_to_wire(each('it {says} "so"')).startswith(b'{"error":')
