"""``promptmill status``: models, queues, workers."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from promptmill.cli.options import settings_options
from promptmill.client import Client
from promptmill.fleet import Fleet
from promptmill.settings import ClientSettings

__all__ = ["status"]

#: How often --watch looks, in seconds.
WATCH_EVERY_S = 2.0


@click.command()
@click.option("--watch", is_flag=True, help="Keep showing it, every two seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@settings_options(ClientSettings, "broker_url")
def status(watch: bool, as_json: bool, broker_url: str | None) -> None:
    """Show what is served, what is queued, and how fast it goes.

    \b
    Examples:
      promptmill status
      promptmill status --watch
      promptmill status --json | jq '.models[].queued'
    """
    with Client(broker_url) as client:
        if as_json:
            click.echo(client.fleet().model_dump_json(indent=2))
            return
        # A table that goes to a file or to grep is as wide as its names.
        console = Console(width=None if sys.stdout.isatty() else 1000)
        if not watch:
            console.print(_tables(client.fleet()))
            return
        with Live(_tables(client.fleet()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_EVERY_S)
                live.update(_tables(client.fleet()), refresh=True)


def _tables(fleet: Fleet) -> Group:
    models = Table("model", "workers", "queued", "oldest", "running", "tokens/s", title="Models", title_justify="left")
    for model in fleet.models:
        models.add_row(
            f"{model.name} (paused)" if model.paused else model.name,
            str(model.workers),
            f"{model.queued:,}",
            f"{model.oldest_s:.0f} s",
            str(model.running),
            f"{model.tokens_per_s:,.0f}",
        )
    workers = Table(
        "worker", "model", "device", "precision", "running", "tokens/s", "done", "failed", "up",
        title="Workers", title_justify="left",
    )  # fmt: skip
    for worker in fleet.workers:
        workers.add_row(
            worker.name,
            worker.served_name,
            worker.device,
            worker.precision,
            str(worker.running),
            f"{worker.tokens_per_s:,.0f}",
            f"{worker.prompts_done:,}",
            f"{worker.prompts_failed:,}",
            _duration(worker.uptime_s),
        )
    return Group(models, workers)


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
