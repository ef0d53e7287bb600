"""``promptmill generate``: one prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from promptmill.cli.options import client_options, given, json_option, option, priority_option, sampling_options
from promptmill.cli.terminal import say
from promptmill.client import Client
from promptmill.delta import Delta

__all__ = ["generate"]


@click.command()
@click.argument("prompt")
@option("--chat", is_flag=True, help="Send the prompt as a user's turn, in the model's chat template.")
@option("--system", help="System message; implies --chat.")
@priority_option
@option("--timeout-s", type=float, stands_for=86400, help="Deadline of the task, in seconds.")
@option("--idempotency-key", help="Name of this task: the same prompt with the same key, here or elsewhere, runs once.")
@option("--stream/--no-stream", default=None, stands_for="on a terminal", help="Print the text as it is made.")
@json_option
@sampling_options
@client_options
def generate(
    prompt: str,
    chat: bool,
    system: str | None,
    priority: Any,
    timeout_s: float | None,
    idempotency_key: str | None,
    stream: bool | None,
    as_json: bool,
    broker_url: str | None,
    model: str | None,
    **sampling: Any,
) -> None:
    """Generate for one PROMPT and print the text.

    The PROMPT "-" is read from standard input. Ctrl-C cancels the task, unless it has an idempotency key: run the same
    command again, and it prints what the task has come to.

    \b
    Examples:
      promptmill generate "Once upon a time" --max-tokens 50 --temperature 0
      promptmill generate --chat "Why is the sky blue?" --system "Answer in one sentence."
      cat article.txt | promptmill generate - --max-tokens 100 --json
    """
    wants_stream = sys.stdout.isatty() if stream is None else stream
    text = sys.stdin.read() if prompt == "-" else prompt
    turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    is_chat = chat or system is not None
    with Client(broker_url, model=model) as client:
        arguments: dict[str, Any] = {
            "prompt": None if is_chat else text,
            "messages": turns if is_chat else None,
            "priority": priority,
            "timeout_s": timeout_s,
            "idempotency_key": idempotency_key,
            **given(sampling),
        }
        if wants_stream and not as_json:
            _print(client.stream(**arguments))
            return
        result = client.generate(**arguments)
    click.echo(result.model_dump_json(indent=2, exclude_none=True) if as_json else result.text)


def _print(deltas: Iterator[Delta]) -> None:
    """The pieces as they come; what goes to standard error begins on a line of its own."""
    is_open = False
    try:
        for delta in deltas:
            if delta.restarted:
                click.echo()
                say("promptmill: a worker was lost, the text begins anew")
            click.echo(delta, nl=False)
            is_open = True
    except BaseException:
        if is_open:
            click.echo()
        raise
    click.echo()
