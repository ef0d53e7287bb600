"""Command-line options: each has an environment variable ``PROMPTMILL_<OPTION>``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from promptmill.log_format import LogFormat
from promptmill.settings import ClientSettings, Settings, environment_name

__all__ = [
    "broker_option",
    "client_options",
    "given",
    "json_option",
    "log_options",
    "option",
    "priority_option",
    "sampling_options",
    "settings_options",
]

Function = TypeVar("Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option that is also read from its environment variable, ``PROMPTMILL_`` and its name.

    Args:
        stands_for: What its help shows as the default of an option that is None if it isn't given.
    """

    def __init__(self, *arguments: Any, stands_for: object = None, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.envvar = environment_name(self.opts[0].removeprefix("--").replace("-", "_"))
        self._stands_for = stands_for

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in square brackets behind the help: range and default."""
        extra = super().get_help_extra(ctx)
        return extra if self._stands_for is None else {**extra, "default": str(self._stands_for)}

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The place that a wrong value comes from."""
        if ctx is not None and ctx.get_parameter_source(self.name or "") is ParameterSource.ENVIRONMENT:
            return f"{self.envvar}"
        return super().get_error_hint(ctx)


class SettingsOption(Option):
    """An option of a settings field: the settings read the environment, and say so where its value is wrong."""

    def resolve_envvar_value(self, ctx: click.Context) -> None:  # noqa: ARG002
        """None: it is not for this place to read it."""
        return


class WholeString(click.types.StringParamType):
    """A string that may be given several times; in the environment it is one, white space and all."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """The value as the only one."""
        return [rv]


def option(*declarations: str, **attributes: Any) -> Callable[[Function], Function]:
    """``click.option`` with an environment variable, and with ``stands_for``."""
    return click.option(*declarations, **{"cls": Option, **attributes})


def settings_options(model: type[Settings], *names: str) -> Callable[[Function], Function]:
    """One option for each named field of ``model``, or for all.

    An option that isn't given is None, so that ``model.read`` takes the environment or the default.
    """

    def decorate(function: Function) -> Function:
        for name in reversed(names or tuple(model.model_fields)):
            function = _settings_option(name, model.model_fields[name])(function)
        return function

    return decorate


#: The option of every command that talks to the broker.
broker_option = settings_options(ClientSettings, "broker_url")

#: The options of every command that submits.
client_options = settings_options(ClientSettings, "broker_url", "model")

priority_option = option(
    "--priority",
    type=click.Choice(["high", "normal", "low"]),
    default="normal",
    show_default=True,
    help="What is generated before what.",
)

json_option = option("--json", "as_json", is_flag=True, help="Print JSON, on standard output.")


def log_options(function: Function) -> Function:
    """What a process that runs on its own logs, and how; see ``log_format.Log``."""
    for flag, words, default, help_text in reversed(
        [
            ("--log-level", ("debug", "info", "warning", "error"), "info", "The least that is logged."),
            ("--log-format", get_args(LogFormat), "text", "Lines for people, or a JSON object a line."),
        ]
    ):
        function = option(flag, type=click.Choice(words), default=default, show_default=True, help=help_text)(function)
    return function


def sampling_options(function: Function) -> Function:
    """The sampling parameters that one types most; values are checked by SamplingParams."""
    for flag, kind, default, help_text in reversed(
        [
            ("--max-tokens", int, 256, "The most tokens to generate."),
            ("--temperature", float, 1.0, "0 is greedy."),
            ("--top-p", float, None, "Draw from the likeliest tokens that add up to this."),
            ("--top-k", int, None, "Draw from this many likeliest tokens."),
            ("--seed", int, None, "The same seed gives the same text."),
            ("--window-tokens", int, None, "Cut a long prompt into windows of this many tokens, and answer each."),
            ("--stride-tokens", int, "window-tokens", "From one window's beginning to the next."),
        ]
    ):
        function = option(flag, type=kind, stands_for=default, help=help_text)(function)
    return option(
        "--stop", type=WholeString(), multiple=True, help="End the text before this string; may be given again."
    )(function)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those sampling options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _settings_option(name: str, field: FieldInfo) -> Callable[[Function], Function]:
    flag = f"--{name.replace('_', '-')}"
    if field.annotation is bool:
        kind: dict[str, Any] = {"default": None}
        flag += f"/--no-{flag[2:]}"
    else:
        kind = {"metavar": _metavar(field.annotation)}
        if field.default is not PydanticUndefined:
            kind["stands_for"] = field.default
    return option(flag, name, cls=SettingsOption, help=f"{field.description}.", **kind)


def _metavar(annotation: Any) -> str:
    """What a field takes, as the help shows it: the words to choose from, or what kind of value."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"[{'|'.join(inner)}]"
    if inner:  # it may be None, or has conditions
        return _metavar(inner[0])
    return {int: "INTEGER", float: "FLOAT", Path: "PATH"}.get(annotation, "TEXT")
