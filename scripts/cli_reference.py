"""Writes the reference part of docs/cli.md, from the commands themselves.

python scripts/cli_reference.py            # prints it
python scripts/cli_reference.py --write    # puts it into docs/cli.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from promptmill.cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

#: What is below this line is written by this script.
MARKER = "<!-- Below: written by scripts/cli_reference.py -->\n"


def reference() -> str:
    """All commands in Markdown: what each does, an example, its options."""
    return "\n".join(_of(cli, click.Context(cli, info_name="promptmill"), 0))


def _of(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    if depth:
        yield f"{'#' * (depth + 1)} {context.command_path}\n"
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"    {context.command_path} {usage}\n"
        yield _prose(command.help or "")
        yield from _options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _of(below, click.Context(below, info_name=name, parent=context), depth + 1)


def _prose(help_text: str) -> str:
    """The help in Markdown: what click is told not to wrap is a block of its own."""
    text = re.sub(r"\x08\nExamples?:\n", "", cleandoc(help_text).replace("``", "`"))
    return re.sub("^  ", "    ", text, flags=re.MULTILINE) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if not options:
        return
    yield "| option | environment | default | |\n|---|---|---|---|"
    for option in options:
        record = option.get_help_record(context)
        assert record is not None
        declared, _ = record
        default = option.get_help_extra(context).get("default", "")
        shown = f"`{default}`" if default else "(required)" if option.required else ""
        cells = (f"`{declared}`", f"`{option.envvar}`", shown, option.help or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        head, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
        PAGE.write_text(f"{head}{MARKER}\n{reference()}", encoding="utf-8")
    else:
        print(reference())
