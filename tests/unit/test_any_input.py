"""Whatever comes in: an object of ours, or an error of ours that quotes no prompt."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from promptmill import (
    Choice,
    GenerationRequest,
    GenerationResult,
    InvalidRequestError,
    PromptmillError,
    SamplingParams,
    TaskFailedError,
    Timings,
    Usage,
    errors,
)
from promptmill.protocol import answer_from_wire, answer_to_wire, requests_from_wire, requests_to_wire

MARKER = "secret-marker"

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
#: Text with halves of surrogate pairs: JSON can hold them, UTF-8 can not.
ANY_TEXT = TEXT | st.text(st.characters(categories=["Cs", "L"]), max_size=3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3))
#: What Python callers can give besides.
ANYTHING = JSON | st.sampled_from([10**5000, -(10**5000), b"bytes", {1, 2}, object(), 1j, SamplingParams(), len])

PARAMETER_NAMES = st.sampled_from([*SamplingParams.model_fields, "max_completion_tokens"]) | TEXT.filter(
    str.isidentifier
)
PARAMETERS = st.dictionaries(PARAMETER_NAMES, ANYTHING, max_size=4)
#: Lists of messages that are nearly right.
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), st.sampled_from(["user", "tool"]) | JSON, max_size=3)
    | JSON,
    max_size=3,
)
REQUESTS = st.lists(
    st.dictionaries(st.sampled_from(["prompt", "messages", "sampling", "new"]), ANY_TEXT | MESSAGES | JSON, max_size=3)
    | JSON,
    max_size=3,
)

#: One of each kind of error, by the names of its values.
ERRORS = st.sampled_from([getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]).flatmap(
    lambda kind: st.builds(
        kind,
        **{
            name: st.integers() if isinstance(parameter.default, int) else TEXT
            for name, parameter in inspect.signature(kind).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        },
    )
)
RESULTS = st.builds(
    GenerationResult,
    choices=st.lists(
        st.builds(Choice, index=st.integers(0, 9), text=TEXT, finish_reason=st.sampled_from(["stop", "length"])),
        max_size=3,
    ).map(tuple),
    usage=st.builds(Usage, prompt_tokens=st.integers(0, 2**40), completion_tokens=st.integers(0, 2**40)),
    timings=st.builds(Timings, queued_s=st.just(0.0), generation_s=st.floats(0, 1e9)),
    attempts=st.integers(1, 99),
)


def refusal(make: Callable[[], Any], kind: type) -> str:
    """What the InvalidRequestError of ``make()`` says; "" if it returns a ``kind``, as it must otherwise."""
    try:
        assert isinstance(make(), kind)
    except InvalidRequestError as error:
        return json.loads(json.dumps(str(error).encode().decode())) or "it says nothing"
    return ""


@given(ERRORS)
def test_an_error_keeps_its_class_and_its_values_on_the_wire(error: PromptmillError) -> None:
    read = answer_from_wire(answer_to_wire(error))
    assert type(read) is type(error)
    assert (read.args, vars(read)) == (error.args, vars(error))


@given(RESULTS, TEXT)
def test_a_result_survives_the_wire(result: GenerationResult, name: str) -> None:
    read = answer_from_wire(answer_to_wire(result, model=name, worker=name), id=name, index=3)
    assert read == result.model_copy(update={"model": name, "worker": name, "id": name, "index": 3})


@given(ANYTHING, ANYTHING | MESSAGES, PARAMETERS)
def test_any_arguments_make_a_request_or_an_error_of_ours(prompt: Any, messages: Any, given_: dict[str, Any]) -> None:
    refusal(lambda: GenerationRequest.of(prompt, messages), GenerationRequest)
    refusal(lambda: GenerationRequest.of("a", **{**given_, "params": None}), GenerationRequest)


@given(PARAMETERS)
@example({"max_tokens": 10**5000})
@example({"stop": [10**5000]})
@example({"\ud800": 1})
@example({"max_tokens": "\ud800"})
@example({"logit_bias": {"\ud800": 1}})
def test_any_parameters_make_sampling_parameters_or_an_error_of_ours(given_: dict[str, Any]) -> None:
    refusal(lambda: SamplingParams.of(**given_), SamplingParams)


@given(REQUESTS | JSON)
def test_any_json_is_a_chunk_or_an_error_of_ours(value: Any) -> None:
    lines = "\n".join(map(json.dumps, value)) if isinstance(value, list) else ""
    for wire in (json.dumps(value), lines):
        refusal(lambda wire=wire: requests_from_wire(wire.encode()), list)


@given(st.binary())
def test_any_bytes_are_a_chunk_or_an_error_of_ours(wire: bytes) -> None:
    refusal(lambda: requests_from_wire(wire), list)


@given(st.lists(st.builds(GenerationRequest.of, TEXT.filter(bool)), min_size=1, max_size=3), st.data())
def test_a_torn_chunk_is_an_error_of_ours_or_a_whole_one(
    requests: list[GenerationRequest], data: st.DataObject
) -> None:
    wire = requests_to_wire(requests)
    at = data.draw(st.integers(0, len(wire)))
    for torn in (wire[:at], wire[at:], wire[:at] + data.draw(st.binary(max_size=3)) + wire[at:]):
        refusal(lambda torn=torn: requests_from_wire(torn), list)


@given(st.dictionaries(st.sampled_from(["choices", "usage", "timings", "error", "id", "index"]), JSON) | JSON)
@example({"error": {}})
@example({"error": {"type": [], "args": 5}})
@example({"error": {"type": "PromptTooLongError", "args": []}})
@example({"choices": [{}]})
@example({"choices": [], "id": 5})
@example({"error": {"type": "EngineError", "args": [5]}})
def test_any_json_is_an_answer_or_a_failure(value: Any) -> None:
    for wire in (json.dumps(value), json.dumps(value).encode()):
        answer = answer_from_wire(wire, index=3)
        assert isinstance(answer, GenerationResult | PromptmillError)
        assert isinstance(str(answer), str)


@given(st.binary())
def test_any_bytes_are_an_answer_or_a_failure(wire: bytes) -> None:
    assert isinstance(answer_from_wire(wire), GenerationResult | PromptmillError)


def test_an_answer_that_can_not_be_read_is_a_failed_task_and_is_not_quoted() -> None:
    for wire in (MARKER, json.dumps(MARKER), json.dumps({"choices": MARKER}), json.dumps({"error": [MARKER]})):
        answer = answer_from_wire(wire)
        assert type(answer) is TaskFailedError
        assert MARKER not in str(answer)


def marked(value: Any) -> Any:
    """The same with the marker in every text."""
    if isinstance(value, str):
        return value + MARKER
    if isinstance(value, list):
        return [marked(item) for item in value]
    return {key: marked(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(REQUESTS | JSON, st.data())
@example([MARKER], None)
@example(MARKER, None)
@example([{"prompt": [MARKER]}], None)
@example([[MARKER]], None)
@example([{"prompt": "a", "messages": MARKER}], None)
@example([{"prompt": "a", "sampling": MARKER}], None)
@example([{"prompt": "a", "sampling": {"stop": {"a": MARKER}}}], None)
def test_no_error_about_a_chunk_quotes_its_text(value: Any, data: st.DataObject | None) -> None:
    whole = json.dumps(marked(value))
    torn = whole[: data.draw(st.integers(0, len(whole)))] if data else whole[:-1]
    for wire in (whole, torn):
        assert MARKER not in refusal(lambda wire=wire: requests_from_wire(wire.encode()), list)


@given(JSON, MESSAGES | JSON, JSON)
def test_no_error_about_a_request_quotes_prompt_messages_or_stop_strings(prompt: Any, messages: Any, stop: Any) -> None:
    for arguments in (
        {"prompt": prompt, "stop": stop},
        {"messages": messages, "stop": stop},
        {"prompt": prompt, "messages": messages},
    ):
        made = marked(arguments)
        assert MARKER not in refusal(lambda made=made: GenerationRequest.of(**made), GenerationRequest)
