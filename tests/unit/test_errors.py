from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest

from promptmill import errors
from promptmill.app import create_app
from promptmill.errors import PromptmillError, TaskFailedError, error_from_wire, error_to_wire
from promptmill.protocol import answer_from_wire, answer_to_wire
from promptmill.settings import Settings

#: One of each, with values in all that can hold some.
EXAMPLES: list[PromptmillError] = [
    errors.PromptmillError("what happened"),
    errors.InvalidRequestError("max_tokens: 0 is not allowed"),
    errors.InvalidSettingError("beat_s"),
    errors.QueueFullError("full", 10_001, 10_000),
    errors.BrokerUnavailableError("localhost:6379"),
    errors.NoWorkerError("nobody", "smollm2"),
    errors.ModelLoadError("no such model"),
    errors.TaskFailedError("failed"),
    errors.PromptTooLongError("too long", 9000, 8192),
    errors.TooManyDeliveriesError("poison", 3),
    errors.EngineError("engine"),
    errors.TaskCancelledError("cancelled"),
    errors.TaskExpiredError("expired", "as far as it came"),
    errors.ResultTimeoutError("not yet", "an-id"),
    errors.ResultNotFoundError("gone", "an-id"),
]
PARENTS = {
    "InvalidRequestError": ValueError,
    "BrokerUnavailableError": ConnectionError,
    "ResultTimeoutError": TimeoutError,
    "ResultNotFoundError": LookupError,
    "PromptTooLongError": TaskFailedError,
    "TooManyDeliveriesError": TaskFailedError,
    "EngineError": TaskFailedError,
}


def assert_same(read: BaseException, error: PromptmillError) -> None:
    assert type(read) is type(error)
    assert (str(read), read.args, vars(read)) == (str(error), error.args, vars(error))


def of_each_class(error: PromptmillError) -> str:
    return type(error).__name__


def test_there_is_an_example_of_every_error() -> None:
    classes = {error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, PromptmillError)}
    assert {type(error) for error in EXAMPLES} == classes


@pytest.mark.parametrize("error", EXAMPLES, ids=of_each_class)
def test_an_error_survives_our_wire(error: PromptmillError) -> None:
    assert_same(error_from_wire(json.loads(json.dumps(error_to_wire(error)))), error)
    answer = answer_from_wire(answer_to_wire(error), id="an-id", index=3)
    assert isinstance(answer, PromptmillError)
    assert_same(answer, error)


@pytest.mark.parametrize("error", EXAMPLES, ids=of_each_class)
def test_an_error_survives_pickle_and_copy(error: PromptmillError) -> None:
    assert_same(pickle.loads(pickle.dumps(error)), error)
    assert_same(copy.deepcopy(error), error)


@pytest.mark.parametrize("error", EXAMPLES, ids=of_each_class)
def test_an_error_survives_celerys_result_backend(error: PromptmillError) -> None:
    backend = create_app(Settings()).backend
    stored = json.loads(json.dumps(backend.prepare_exception(error, serializer="json")))
    assert_same(backend.exception_to_python(stored), error)


@pytest.mark.parametrize("error", EXAMPLES, ids=of_each_class)
def test_an_error_is_what_pythons_own_handlers_expect(error: PromptmillError) -> None:
    assert isinstance(error, PARENTS.get(type(error).__name__, PromptmillError))
    assert isinstance(error, PromptmillError)
    assert str(type(error)()) == ""


def test_an_error_of_a_newer_version_is_a_failed_task() -> None:
    read = error_from_wire({"type": "QuantumError", "args": ["decohered", 1]})
    assert type(read) is TaskFailedError
    assert str(read) == "QuantumError: decohered"
    assert str(error_from_wire({"type": "QuantumError", "args": []})) == "QuantumError: "


def test_a_known_error_with_values_that_a_newer_version_added_keeps_its_class() -> None:
    read = error_from_wire({"type": "PromptTooLongError", "args": ["too long", 9, 8, "a newer value"]})
    assert type(read) is errors.PromptTooLongError
    assert str(read) == "too long"


def test_a_class_outside_the_tree_is_never_made() -> None:
    assert type(error_from_wire({"type": "SystemExit", "args": ["0"]})) is TaskFailedError
