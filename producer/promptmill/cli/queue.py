"""``promptmill queue``: stops and starts the taking of work, and empties a queue."""

from __future__ import annotations

import json
import sys

import click

from promptmill.cli.options import broker_option, json_option, option
from promptmill.cli.terminal import confirmed, counted, say
from promptmill.queue_control import QueueControl, Queued
from promptmill.settings import ClientSettings

__all__ = ["queue"]


@click.group()
def queue() -> None:
    """Pause, resume or empty the queue of a model.

    \b
    Examples:
      promptmill queue pause smollm2
      promptmill queue resume smollm2
      promptmill queue purge smollm2
    """


@queue.command()
@click.argument("model")
@json_option
@broker_option
def pause(model: str, as_json: bool, broker_url: str | None) -> None:
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
    _report({"model": model, "paused": True, "changed": changed}, f"the queue of {model} {said}", as_json)


@queue.command()
@click.argument("model")
@json_option
@broker_option
def resume(model: str, as_json: bool, broker_url: str | None) -> None:
    """Have a paused queue worked off again; workers notice within two seconds.

    \b
    Example:
      promptmill queue resume smollm2
    """
    with _opened(broker_url) as control:
        changed = control.resume(model)
    said = "is worked off again" if changed else "was not paused"
    _report({"model": model, "paused": False, "changed": changed}, f"the queue of {model} {said}", as_json)


@queue.command()
@click.argument("model")
@option("--yes", is_flag=True, help="Don't ask.")
@json_option
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
        if not yes and not confirmed(_question(model, control.queued(model)), "nothing was purged"):
            sys.exit(1)
        purged = control.purge(model)
    said = f"{counted(purged.prompts, 'prompt')} cancelled, {counted(purged.calls, 'plain call')} deleted"
    _report({"model": model, "prompts": purged.prompts, "calls": purged.calls}, said, as_json)


def _opened(broker_url: str | None) -> QueueControl:
    return QueueControl(ClientSettings.read(broker_url=broker_url))


def _question(model: str, queued: Queued) -> str:
    others = f", and delete {counted(queued.calls, 'other message')}" if queued.calls else ""
    return f"Cancel {counted(queued.prompts, 'prompt')} waiting for {model}{others}?"


def _report(done: dict[str, object], said: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done))
    say(said)
