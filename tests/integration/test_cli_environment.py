"""Every option is documented, and can be set in the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from brokers import free_port
from command_line import promptmill
from workers import a_worker

from promptmill.cli.main import cli

REPOSITORY = Path(__file__).parents[2]


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, with the words that one types."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *path, name)


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example(path: tuple[str, ...]) -> None:
    shown = promptmill(*path, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert " ".join(("promptmill", *path)) in shown.stdout.split("Example", 1)[1]


def test_every_option_has_the_variable_of_its_name_and_a_help() -> None:
    options = [
        option
        for path, command in COMMANDS.items()
        if path
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    assert len(options) > 80
    for option in options:
        assert option.envvar == "PROMPTMILL_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
        assert option.help, option.opts


def test_the_reference_in_the_docs_is_what_the_commands_say() -> None:
    script = REPOSITORY / "scripts" / "cli_reference.py"
    written = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page.endswith(f"-->\n\n{written.stdout}".rstrip("\n") + "\n"), "run scripts/cli_reference.py --write"


@pytest.fixture
def broker(broker_url: str, tmp_path: Path) -> Iterator[str]:
    """URL of a broker with a worker."""
    with a_worker(broker_url, tmp_path / "log"):
        yield broker_url


def test_options_are_read_from_the_environment(broker: str, tmp_path: Path) -> None:
    done = promptmill(
        "generate", "a b c d", broker=broker,
        PROMPTMILL_MODEL="echo", PROMPTMILL_MAX_TOKENS="3", PROMPTMILL_JSON="1", PROMPTMILL_STOP=" c",
    )  # fmt: skip
    result = json.loads(done.stdout)["choices"][0]
    assert (result["text"], result["finish_reason"]) == ("a b", "stop")
    source = tmp_path / "in.jsonl"
    source.write_text('{"question": "one two"}\n')
    environment = {
        "PROMPTMILL_MODEL": "echo",
        "PROMPTMILL_OUTPUT": str(tmp_path / "out.jsonl"),
        "PROMPTMILL_FIELD": "question",
        "PROMPTMILL_SIMPLE": "yes",
    }
    assert promptmill("batch", source, broker=broker, **environment).returncode == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "one two"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("generate", "a"), "MAX_TOKENS", "many"),
        (("generate", "a"), "PRIORITY", "urgent"),
        (("batch", __file__), "MAX_IN_FLIGHT", "0"),
        (("worker", "--model", "echo"), "MAX_BATCH", "0"),
        (("demo",), "MAX_TOKENS", "0"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(arguments: tuple[str, ...], name: str, value: str) -> None:
    environment = {f"PROMPTMILL_{name}": value, "PROMPTMILL_OUTPUT": "nowhere"}
    refused = promptmill(*arguments, broker=f"redis://127.0.0.1:{free_port()}/0", **environment)
    assert refused.returncode == 2
    assert f"PROMPTMILL_{name}" in refused.stderr
    assert value in refused.stderr
