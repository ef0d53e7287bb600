"""``promptmill worker``: one process, one loaded model."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from typing import Any

import click

from promptmill.cli.options import settings_options
from promptmill.settings import environment_name
from promptmill_worker.settings import WorkerSettings

__all__ = ["worker"]


@click.command()
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar=environment_name("log_level"),
    show_envvar=True,
)
@settings_options(WorkerSettings)
def worker(log_level: str, **options: Any) -> None:
    """Serve a model: load it, then generate for all that is queued under its name.

    \b
    Examples:
      promptmill worker --model HuggingFaceTB/SmolLM2-135M-Instruct
      promptmill worker --model ./my-model --served-name mine --quantization bnb-4bit
      promptmill worker --model model.gguf --device cpu --threads 8
    """
    settings = WorkerSettings.read(**options)
    # Here, not above: this pulls in Celery, and --help should be quick.
    from celery.platforms import SecurityWarning

    from promptmill_worker.worker import create_worker_app

    # Celery warns of root because of pickle; our messages are JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app = create_worker_app(settings)
    process = app.Worker(
        loglevel=log_level.upper(),
        hostname=f"{settings.name_served}-{os.getpid()}@{socket.gethostname()}",
        quiet=True,
        # Workers know of each other through the ledger; asking around would only delay the start by a second.
        without_mingle=True,
        without_gossip=True,
    )
    process.start()
    sys.exit(process.exitcode)
