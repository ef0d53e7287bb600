"""``promptmill status``: models, queues, workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from promptmill.cli.options import broker_option, json_option, option
from promptmill.cli.progress import duration
from promptmill.cli.terminal import say, show, table_console
from promptmill.client import Client
from promptmill.errors import BrokerUnavailableError
from promptmill.fleet import Fleet

__all__ = ["status"]

#: How often --watch looks, in seconds.
WATCH_EVERY_S = 2.0


@click.command()
@option("--watch", is_flag=True, help="Keep showing it, every two seconds, until Ctrl-C.")
@json_option
@broker_option
def status(watch: bool, as_json: bool, broker_url: str | None) -> None:
    """Show what is served, queued, and how fast it goes.

    With --watch it goes on while the broker is away. With --watch and --json it prints one line of JSON each time.

    \b
    Examples:
      promptmill status
      promptmill status --watch
      promptmill status --json | jq '.models[].queued'
    """
    with Client(broker_url) as client:
        if not watch:
            fleet = client.fleet()
            click.echo(fleet.model_dump_json(indent=2)) if as_json else show(_tables(fleet))
            return
        try:
            _watch_json(client) if as_json else _watch(client, table_console())
        except KeyboardInterrupt:  # the way out of --watch, not a failure
            return


def _watch_json(client: Client) -> None:
    for fleet in _looks(client):
        if isinstance(fleet, Fleet):
            click.echo(fleet.model_dump_json())
        else:
            say(f"promptmill: {fleet}", "red")


def _watch(client: Client, console: Console) -> None:
    seen: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        for fleet in _looks(client):
            if isinstance(fleet, Fleet):
                seen = shown = _tables(fleet)
            else:
                shown = Group(seen, Text(f"{datetime.now():%H:%M:%S}  {fleet}", "red"))
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown)


def _looks(client: Client) -> Iterator[Fleet | BrokerUnavailableError]:
    """The fleet every two seconds; a broker that was there once may go and come back."""
    yield client.fleet()
    while True:
        time.sleep(WATCH_EVERY_S)
        try:
            yield client.fleet()
        except BrokerUnavailableError as error:
            yield error


def _tables(fleet: Fleet) -> RenderableType:
    if not fleet.models and not fleet.workers:
        return Text("no workers, and nothing is queued")
    return Group(_models(fleet), _workers(fleet), *_errors(fleet))


def _models(fleet: Fleet) -> Table:
    table = Table(
        "model", "workers", "prompts", "in flight", "oldest", "in/s", "out/s", "drained in", "tokens/s",
        title="Models", title_justify="left",
    )  # fmt: skip
    for model in fleet.models:
        is_stuck = model.unfinished > 0 and model.workers == 0
        table.add_row(
            Text(f"{model.name} (paused)", "yellow") if model.paused else Text(model.name),
            Text(str(model.workers), "red" if is_stuck else ""),
            f"{model.unfinished:,}",
            f"{model.in_flight:,}",
            duration(model.oldest_s),
            f"{model.arrivals_per_s:,.1f}",
            f"{model.completions_per_s:,.1f}",
            "?" if model.drain_s is None else duration(model.drain_s),
            f"{model.tokens_per_s:,.0f}",
        )
    return table


def _workers(fleet: Fleet) -> Table:
    table = Table(
        "worker", "model", "device", "precision", "running", "waiting", "tokens/s", "cache", "GPU memory", "done",
        "failed", "up", title="Workers", title_justify="left",
    )  # fmt: skip
    for worker in fleet.workers:
        used, total = worker.gpu_memory_used_bytes, worker.gpu_memory_total_bytes
        table.add_row(
            Text(worker.name),
            Text(worker.served_name),
            worker.device,
            worker.precision,
            f"{worker.running}/{worker.max_batch}",
            str(worker.waiting),
            f"{worker.tokens_per_s:,.0f}",
            f"{worker.cache_used:.0%}",
            f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB" if total else "",
            f"{worker.prompts_done:,}",
            Text(f"{worker.prompts_failed:,}", "yellow" if worker.prompts_failed else ""),
            duration(worker.uptime_s),
        )
    return table


def _errors(fleet: Fleet) -> Iterator[Text]:
    for worker in fleet.workers:
        if worker.last_error_at is not None:
            at = datetime.fromtimestamp(worker.last_error_at)
            yield Text(f"{worker.name}, {at:%Y-%m-%d %H:%M:%S}: {worker.last_error}", "yellow")
