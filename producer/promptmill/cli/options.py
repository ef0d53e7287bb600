"""Command-line options, made from the fields of the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from promptmill.settings import ClientSettings, Settings, environment_name

__all__ = ["client_options", "sampling_options", "settings_options"]

Function = TypeVar("Function", bound=Callable[..., Any])


def settings_options(model: type[Settings], *names: str) -> Callable[[Function], Function]:
    """One option for each named field of ``model``, or for all.

    An option that isn't given is None, so that ``model.read`` takes the environment or the default.
    """

    def decorate(function: Function) -> Function:
        for name in reversed(names or tuple(model.model_fields)):
            function = _option(name, model.model_fields[name])(function)
        return function

    return decorate


def client_options(function: Function) -> Function:
    """The options that every command which talks to the broker has."""
    return settings_options(ClientSettings, "broker_url", "model")(function)


def sampling_options(function: Function) -> Function:
    """The sampling parameters that one types most; values are checked by SamplingParams."""
    for name, kind, help_text in reversed(
        [
            ("max_tokens", int, "The most tokens to generate.  [default: 256]"),
            ("temperature", float, "0 is greedy.  [default: 1.0]"),
            ("top_p", float, "Draw from the likeliest tokens that add up to this."),
            ("top_k", int, "Draw from this many likeliest tokens."),
            ("seed", int, "The same seed gives the same text."),
            ("window_tokens", int, "Cut a long prompt into windows of this many tokens, and answer each."),
            ("stride_tokens", int, "From one window's beginning to the next.  [default: window-tokens]"),
        ]
    ):
        flag = f"--{name.replace('_', '-')}"
        function = click.option(flag, type=kind, help=help_text, envvar=environment_name(name), show_envvar=True)(
            function
        )
    return click.option("--stop", multiple=True, help="End the text before this string; may be given again.")(function)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those sampling options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _option(name: str, field: FieldInfo) -> Callable[[Function], Function]:
    flag = f"--{name.replace('_', '-')}"
    notes = [f"env: {environment_name(name)}"]
    if field.default is not None and field.default is not PydanticUndefined and field.annotation is not bool:
        notes.append(f"default: {field.default}")
    help_text = f"{field.description}.  [{'; '.join(notes)}]"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    return click.option(flag, name, metavar="VALUE", help=help_text)
