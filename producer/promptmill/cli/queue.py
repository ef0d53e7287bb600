"""``promptmill queue``: stops and starts the taking of work, and empties a queue."""

from __future__ import annotations

import json
import sys

import click

from promptmill.cli.options import settings_options
from promptmill.queue_control import QueueControl, Queued
from promptmill.settings import ClientSettings

__all__ = ["queue"]

broker_option = settings_options(ClientSettings, "broker_url")


@click.group()
def queue() -> None:
    """Stop and start the taking of work, and empty a queue.

    \b
    Examples:
      promptmill queue pause smollm2
      promptmill queue resume smollm2
      promptmill queue purge smollm2
    """


@queue.command()
@click.argument("model")
@broker_option
def pause(model: str, broker_url: str | None) -> None:
    """Let nothing more of a model's queue begin.

    What runs goes on. Prompts can still be submitted, and wait; those whose deadline passes end. It lasts until
    `promptmill queue resume`, over restarts of workers, too.

    \b
    Example:
      promptmill queue pause smollm2
    """
    with _opened(broker_url) as control:
        changed = control.pause(model)
    said = "is paused: what runs goes on, and nothing else begins" if changed else "was paused already"
    click.echo(f"the queue of {model} {said}", err=True)


@queue.command()
@click.argument("model")
@broker_option
def resume(model: str, broker_url: str | None) -> None:
    """Have a paused queue worked off again; workers notice within two seconds.

    \b
    Example:
      promptmill queue resume smollm2
    """
    with _opened(broker_url) as control:
        changed = control.resume(model)
    said = "is worked off again" if changed else "was not paused"
    click.echo(f"the queue of {model} {said}", err=True)


@queue.command()
@click.argument("model")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@broker_option
def purge(model: str, yes: bool, as_json: bool, broker_url: str | None) -> None:
    """End all that is queued for a model.

    What runs goes on. Each prompt ends in TaskCancelledError, and its submitter is told. Plain Celery calls that no
    worker has taken yet are deleted, as `celery purge` does it; nobody is told of those.

    \b
    Examples:
      promptmill queue purge smollm2
      promptmill queue purge smollm2 --yes --json
    """
    with _opened(broker_url) as control:
        if not yes and not _confirmed(model, control.queued(model)):
            click.echo("promptmill: nothing was purged; with --yes it isn't asked", err=True)
            sys.exit(1)
        purged = control.purge(model)
    if as_json:
        click.echo(json.dumps({"model": model, "prompts": purged.prompts, "calls": purged.calls}))
    click.echo(f"{purged.prompts:,} prompts cancelled, {purged.calls:,} plain calls deleted", err=True)


def _opened(broker_url: str | None) -> QueueControl:
    return QueueControl(ClientSettings.read(broker_url=broker_url))


def _confirmed(model: str, queued: Queued) -> bool:
    others = f", and delete {queued.calls:,} other messages" if queued.calls else ""
    try:
        return click.confirm(f"Cancel the {queued.prompts:,} prompts that wait for {model}{others}?", err=True)
    except click.Abort:  # nobody is there to answer
        return False
