"""``promptmill task``: one task."""

from __future__ import annotations

import json

import click

from promptmill.cli.options import broker_option, json_option, option
from promptmill.client import Client
from promptmill.errors import PromptmillError, ResultNotFoundError, error_to_wire
from promptmill.task import TaskStatus

__all__ = ["task"]


@click.command()
@click.argument("task_id", metavar="ID")
@option("--cancel", is_flag=True, help="End the task, unless it is answered already.")
@json_option
@broker_option
def task(task_id: str, cancel: bool, as_json: bool, broker_url: str | None) -> None:
    """Show a task's status and its result.

    \b
    Examples:
      promptmill task 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4
      promptmill task 5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4 --cancel
    """
    with Client(broker_url) as client:
        handle = client.task(task_id)
        if cancel:
            handle.cancel()
        state = handle.status()
        if state is TaskStatus.UNKNOWN:
            raise ResultNotFoundError(f"the broker knows no task {task_id}", task_id)
        shown: dict[str, object] = {"id": task_id, "status": state}
        if state not in (TaskStatus.QUEUED, TaskStatus.RUNNING):
            try:
                result = handle.result(timeout_s=5)
                shown["result"] = result.model_dump(mode="json", exclude_none=True)
                text = result.text
            except PromptmillError as error:
                shown["error"] = error_to_wire(error)
                text = str(error)
        else:
            text = ""
    click.echo(json.dumps(shown, indent=2) if as_json else f"{state}\n{text}".rstrip())
