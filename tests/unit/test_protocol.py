from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill import (
    Choice,
    GenerationRequest,
    GenerationResult,
    InvalidRequestError,
    Message,
    SamplingParams,
    Timings,
    Usage,
)
from promptmill.protocol import answer_from_wire, answer_to_wire, requests_from_wire, requests_to_wire

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
PARAMS = st.builds(
    SamplingParams.of,
    max_tokens=st.integers(1, 1_000_000),
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 100),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), max_size=3),
    logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100), max_size=2),
)
CHAT = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}), min_size=1)


@given(
    st.lists(
        st.builds(lambda prompt, params: GenerationRequest.of(prompt, params=params), TEXT, PARAMS),
        min_size=1,
        max_size=5,
    )
)
def test_prompts_of_any_text_survive_the_wire(requests: list[GenerationRequest]) -> None:
    assert requests_from_wire(requests_to_wire(requests)) == requests


@given(CHAT, PARAMS)
def test_chats_of_any_text_survive_the_wire(chat: list[dict[str, str]], params: SamplingParams) -> None:
    request = GenerationRequest.of(messages=chat, params=params)
    assert requests_from_wire(requests_to_wire([request])) == [request]


def test_what_was_not_given_is_not_on_the_wire() -> None:
    request = GenerationRequest.of("a", max_tokens=5)
    assert json.loads(requests_to_wire([request])) == {"prompt": "a", "sampling": {"max_tokens": 5}}


@pytest.mark.parametrize("wire", [b"no json", b"{}", b"5", b'{"prompt": ""}', b'{"prompt": "a", "new": 1}', b"\n"])
def test_a_line_that_is_no_request_is_told_of_in_its_place(wire: bytes) -> None:
    good = GenerationRequest.of("good")
    read = requests_from_wire(b"\n".join([requests_to_wire([good]), wire, requests_to_wire([good])]))
    assert (read[0], read[-1]) == (good, good)
    assert {type(request) for request in read[1:-1]} == {InvalidRequestError}


def test_a_newer_clients_parameter_is_named_as_its_user_wrote_it() -> None:
    [error] = requests_from_wire(b'{"prompt": "a", "sampling": {"typical_p": 0.9}}')
    assert str(error).startswith("unknown parameter 'typical_p'; known are ")
    assert "max_tokens" in str(error)
    [error] = requests_from_wire(b'{"prompt": "a", "sampling": {"top_p": 3}}')
    assert str(error) == "top_p: 3 is not allowed (range: > 0.0 and ≤ 1.0)"


@given(TEXT)
def test_a_result_survives_the_wire_with_what_only_its_worker_and_its_reader_know(text: str) -> None:
    made = GenerationResult(
        choices=(Choice(index=0, text=text, finish_reason="stop"), Choice(index=1, text="", finish_reason="length")),
        usage=Usage(prompt_tokens=3, completion_tokens=5),
        timings=Timings(time_to_first_token_s=0.5, generation_s=1.5),
    )
    wire = answer_to_wire(made, queued_s=2.5, model="smollm2", worker="a-worker", attempts=2)
    read = answer_from_wire(wire, id="an-id", index=7)
    assert isinstance(read, GenerationResult)
    assert (read.choices, read.usage, read.text, read.finish_reason) == (made.choices, made.usage, text, "stop")
    assert read.timings == Timings(queued_s=2.5, time_to_first_token_s=0.5, generation_s=1.5)
    assert (read.model, read.worker, read.attempts, read.id, read.index) == ("smollm2", "a-worker", 2, "an-id", 7)


def test_a_result_of_a_newer_version_with_more_fields_can_be_read() -> None:
    read = answer_from_wire(b'{"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "new": 1}], "newer": {}}')
    assert isinstance(read, GenerationResult)
    assert read.text == "a"


def test_a_result_without_choices_has_no_text_and_no_reason() -> None:
    result = GenerationResult(error=InvalidRequestError("wrong"))
    assert (result.text, result.finish_reason) == ("", None)


def test_messages_can_be_given_as_objects() -> None:
    message = Message(role="user", content="a")
    assert GenerationRequest.of(messages=[message]).messages == (message,)


@pytest.mark.parametrize("change", [{"prompt": "b"}, {"sampling": SamplingParams()}])
def test_a_request_can_not_be_changed(change: dict[str, Any]) -> None:
    request = GenerationRequest.of("a")
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match="frozen"):
        setattr(request, name, value)
