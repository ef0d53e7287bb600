"""The ``promptmill`` command: a group whose commands are imported when they are used."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from typing import NoReturn

import click

from promptmill.cli.interrupts import INTERRUPTED, second_interrupt_leaves
from promptmill.cli.terminal import say
from promptmill.errors import InvalidRequestError, InvalidSettingError, PromptmillError

__all__ = ["main"]

#: Where each command lives. The worker's needs the worker's packages, and only when it is used.
COMMANDS = {
    "batch": "promptmill.cli.batch:batch",
    "dead-letter": "promptmill.cli.dead_letter:dead_letter",
    "demo": "promptmill.cli.demo:demo",
    "generate": "promptmill.cli.generate:generate",
    "monitor": "promptmill.cli.monitor:monitor",
    "queue": "promptmill.cli.queue:queue",
    "status": "promptmill.cli.status:status",
    "task": "promptmill.cli.task:task",
    "up": "promptmill.cli.up:up",
    "worker": "promptmill_worker.command:worker",
}


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return _explained(command)


def _explained(command: click.Command) -> click.Command:
    """The command, with the end of its help: where its options can be set besides."""
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if shown:
        name, variable = shown[0].opts[0], shown[0].envvar
        command.epilog = f"In the environment, {name} is {variable}, and so for every option; the command line wins."
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _explained(below)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("promptmill"), "--version", message="promptmill %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """LLM generation on your own GPU machines: prompts in, text out.

    \b
    Examples:
      promptmill up --model HuggingFaceTB/SmolLM2-135M-Instruct    everything in one terminal
      promptmill worker --model HuggingFaceTB/SmolLM2-135M-Instruct
      promptmill generate "Once upon a time" --max-tokens 50
    """
    if context.invoked_subcommand != "worker":  # which ends in an order of its own
        second_interrupt_leaves()


def main() -> None:
    """The console script. Exit codes: 0 fine, 1 the work failed, 2 wrong usage, 130 interrupted."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _leave("interrupted", INTERRUPTED, style=None)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InvalidRequestError, InvalidSettingError) as error:
        _leave(str(error), 2)
    except PromptmillError as error:
        _leave(str(error), 1)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _leave(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)


def _leave(message: str, code: int, style: str | None = "red") -> NoReturn:
    say(f"promptmill: {message}", style)
    sys.exit(code)
