"""``promptmill dead-letter``: prompts that were stopped because their workers kept dying under them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

import click
from rich.table import Table
from rich.text import Text

from promptmill.cli.options import broker_option, json_option, option
from promptmill.cli.terminal import confirmed, counted, say, show
from promptmill.dead_letters import DeadLetter, DeadLetters
from promptmill.errors import InvalidRequestError
from promptmill.settings import ClientSettings

__all__ = ["dead_letter"]

#: The most letters that are listed; the ledger keeps no more.
LISTED = 1000


@click.group()
def dead_letter() -> None:
    """Look after prompts that killed their workers.

    Such a prompt is stopped after some deliveries, and kept until it is replayed or purged.

    \b
    Examples:
      promptmill dead-letter list
      promptmill dead-letter show 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill dead-letter replay 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill dead-letter purge --all
    """


@dead_letter.command("list")
@json_option
@broker_option
def list_letters(as_json: bool, broker_url: str | None) -> None:
    """List dead letters, newest first, without their prompts.

    \b
    Examples:
      promptmill dead-letter list
      promptmill dead-letter list --json | jq -r '.[].task'
    """
    with _opened(broker_url) as letters:
        listed = list(letters.newest(LISTED))
        if as_json:
            shown = [{**letter.model_dump(exclude={"request"}), "stopped_at": letter.stopped_at} for letter in listed]
            click.echo(json.dumps(shown, indent=2))
            return
    show(_table(listed) if listed else Text("no dead letters"))


@dead_letter.command("show")
@click.argument("task_id", metavar="ID")
@json_option
@broker_option
def show_letter(task_id: str, as_json: bool, broker_url: str | None) -> None:
    """Show a dead letter with its prompt.

    Why it is one, the workers that were lost while they had it, and the whole request.

    \b
    Examples:
      promptmill dead-letter show 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill dead-letter show 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4 --json | jq .request
    """
    with _opened(broker_url) as letters:
        letter = letters.find(task_id)
    if as_json:
        click.echo(json.dumps({**letter.model_dump(), "stopped_at": letter.stopped_at}, indent=2))
        return
    click.echo(f"task {letter.task} for {letter.model}, stopped {_time(letter.stopped_at)}: {letter.reason}")
    for lost in letter.history:
        click.echo(f"{_time(lost.at)}  {lost.worker}{', alone with it' if lost.alone else ''}: {lost.why}")
    click.echo(json.dumps(letter.request, indent=2, ensure_ascii=False))


@dead_letter.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@option("--all", "take_all", is_flag=True, help="Replay all.")
@json_option
@broker_option
def replay(task_ids: tuple[str, ...], take_all: bool, as_json: bool, broker_url: str | None) -> None:
    """Submit dead letters again, as new tasks.

    Prints the old and the new id of each. They go into their old queue with their old priority, and get as much time
    as they were given at first.

    \b
    Examples:
      promptmill dead-letter replay 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill dead-letter replay --all
    """
    replayed: dict[str, str] = {}
    left = 0
    with _opened(broker_url) as letters:
        chosen = _chosen(letters, task_ids, take_all)
        for letter in letters.newest() if chosen is None else chosen:
            try:
                replayed[letter.task] = letters.replay(letter)
            except InvalidRequestError as error:  # the others may be fine
                say(f"promptmill: {error}", "red")
                left += 1
                continue
            if not as_json:
                click.echo(f"{letter.task} {replayed[letter.task]}")
    if as_json:
        click.echo(json.dumps(replayed, indent=2))
    if left:
        sys.exit(1)


@dead_letter.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@option("--all", "take_all", is_flag=True, help="Delete all.")
@option("--yes", is_flag=True, help="Don't ask.")
@json_option
@broker_option
def purge(task_ids: tuple[str, ...], take_all: bool, yes: bool, as_json: bool, broker_url: str | None) -> None:
    """Delete dead letters, with their prompts.

    \b
    Examples:
      promptmill dead-letter purge 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill dead-letter purge --all --yes
    """
    with _opened(broker_url) as letters:
        chosen = _chosen(letters, task_ids, take_all)
        count = letters.count() if chosen is None else len(chosen)
        if not yes and not confirmed(f"Delete {counted(count, 'dead letter')}?", "nothing was deleted"):
            sys.exit(1)
        deleted = letters.purge(chosen)
    if as_json:
        click.echo(json.dumps({"deleted": deleted}))
    say(f"{counted(deleted, 'dead letter')} deleted")


def _opened(broker_url: str | None) -> DeadLetters:
    return DeadLetters(ClientSettings.read(broker_url=broker_url))


def _chosen(letters: DeadLetters, task_ids: Sequence[str], take_all: bool) -> list[DeadLetter] | None:
    """The letters of ``task_ids``, found before anything is done; None for all."""
    if bool(task_ids) == take_all:
        raise click.UsageError("name dead letters by the ids of their tasks, or give --all")
    return None if take_all else [letters.find(task_id) for task_id in dict.fromkeys(task_ids)]


def _table(listed: Iterable[DeadLetter]) -> Table:
    table = Table("task", "model", "stopped", "workers lost", "reason")
    for letter in listed:
        cells = (letter.task, letter.model, _time(letter.stopped_at), str(len(letter.history)), letter.reason)
        table.add_row(*map(Text, cells))  # Text, not str: rich would read square brackets as markup
    return table


def _time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
