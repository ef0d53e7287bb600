from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import promptmill
from promptmill import AsyncClient, Client

#: What applications import. Adding to it is a decision; removing from it breaks somebody.
PUBLIC = [
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Choice",
    "Client",
    "Delta",
    "EngineError",
    "Fleet",
    "GenerationRequest",
    "GenerationResult",
    "InvalidRequestError",
    "InvalidSettingError",
    "MapProgress",
    "Message",
    "ModelLoadError",
    "NoWorkerError",
    "PromptTooLongError",
    "PromptmillError",
    "QueueFullError",
    "ResultNotFoundError",
    "ResultTimeoutError",
    "SamplingParams",
    "Task",
    "TaskCancelledError",
    "TaskExpiredError",
    "TaskFailedError",
    "TaskStatus",
    "Timings",
    "TokenLogprob",
    "TooManyDeliveriesError",
    "TopLogprob",
    "Usage",
]


def test_the_public_api_is_this_list_in_order() -> None:
    assert promptmill.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert all(hasattr(promptmill, name) for name in PUBLIC)


def test_everything_public_is_documented() -> None:
    for name in PUBLIC:
        thing = getattr(promptmill, name)
        assert inspect.getdoc(thing), name
        for member, value in inspect.getmembers(thing, inspect.isfunction):
            if not member.startswith("_") and value.__module__.startswith("promptmill"):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_the_client_has_the_verbs_that_users_type() -> None:
    for verb in ("generate", "submit", "stream", "map", "task", "fleet", "close", "__enter__", "__exit__"):
        assert callable(getattr(promptmill.Client, verb))
        assert callable(getattr(promptmill.AsyncClient, verb.replace("__", "__a", 1)))
    for verb in ("result", "stream", "status", "cancel"):
        assert callable(getattr(promptmill.Task, verb))
        assert callable(getattr(promptmill.AsyncTask, verb))
    assert {status.name for status in promptmill.TaskStatus} == {
        "QUEUED",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
        "EXPIRED",
        "UNKNOWN",
    }


def test_every_modules_list_of_names_is_true() -> None:
    for module in pkgutil.walk_packages(promptmill.__path__, "promptmill."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.{name}"


def test_importing_promptmill_reads_no_environment_connects_to_nothing_and_configures_no_logging() -> None:
    program = """
import logging, os, socket
os.environ["PROMPTMILL_BROKER_URL"] = "nonsense"
def refuse(*_): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
import promptmill, promptmill.cli, promptmill.batch, promptmill.app
assert not logging.getLogger().handlers and not logging.getLogger("promptmill").handlers
"""
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr


def test_a_clients_methods_show_the_arguments_and_the_docstrings_of_the_verbs_they_run() -> None:
    for name in ("generate", "submit", "stream", "map", "map_requests"):
        shown = inspect.signature(getattr(Client, name))
        verb = getattr(AsyncClient, name)
        assert [*shown.parameters.values()] == [*inspect.signature(verb).parameters.values()]
        assert getattr(Client, name).__doc__ == verb.__doc__
        assert "Async" not in str(shown.return_annotation)
