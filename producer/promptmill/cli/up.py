"""``promptmill up``: everything in one terminal."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console

from promptmill.cli.options import option
from promptmill.cli.terminal import say
from promptmill.client import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.local_monitor import LocalMonitor
from promptmill.local_worker import LocalWorker
from promptmill.settings import environment_name

__all__ = ["up"]


@click.command(context_settings={"ignore_unknown_options": True})
@option("--model", required=True, help="Hub id, folder, or GGUF file.")
@option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the queue here over restarts; without it, it goes at the end.",
)
@option(
    "--monitor/--no-monitor",
    default=None,
    stands_for="if it is installed",
    help="Start the monitor, too, at http://127.0.0.1:5555.",
)
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED)
def up(model: str, data_dir: Path | None, monitor: bool | None, worker_options: tuple[str, ...]) -> None:
    """Start broker, worker and monitor; Ctrl-C ends all.

    Other options go to the worker, see ``promptmill worker --help``.

    \b
    Examples:
      promptmill up --model HuggingFaceTB/SmolLM2-135M-Instruct
      promptmill up --model model.gguf --device cpu --threads 4 --data-dir ./queue
    """
    console = Console(stderr=True)
    if monitor is None:
        monitor = LocalMonitor.is_installed()
    with (
        EmbeddedBroker(data_dir) as broker,
        LocalWorker(broker.url, ["--model", model, *worker_options]) as worker,
        LocalMonitor(broker.url, data_dir and data_dir / "monitor") if monitor else nullcontext() as watched,
    ):
        console.print("Loading the model …")
        with Client(broker.url) as client:
            record = worker.wait_until_ready(client)
        console.print(f"\n[bold]{record.served_name}[/bold] is served. In another terminal:\n", highlight=False)
        click.echo(f"  export {environment_name('broker_url')}='{broker.url}'")
        click.echo('  promptmill generate "Once upon a time" --max-tokens 40\n')
        code = None
        while code is None:
            code = worker.wait(1.0)
            if watched is not None and watched.has_ended():
                say("promptmill: the monitor has ended; all else goes on without it", "yellow")
                watched = None
    sys.exit(code)
