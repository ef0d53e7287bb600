"""``promptmill worker``: one process, one loaded model, or one a GPU; and above, one that starts them when they die."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from promptmill.cli.options import log_options, option, settings_options
from promptmill.errors import InvalidSettingError
from promptmill.log_format import Log, LogFormat
from promptmill.settings import environment_name
from promptmill_worker.gpu_workers import workers_of
from promptmill_worker.launcher import Launcher
from promptmill_worker.launcher_tie import tie_to_launcher
from promptmill_worker.settings import WorkerSettings

__all__ = ["worker"]


@click.command()
@option(
    "--restart/--no-restart",
    default=True,
    show_default=True,
    help="Start the worker again when it dies; or leave that to Kubernetes and the like.",
)
@option(
    "--gpus",
    metavar="all|0,1",
    help="Start one worker on each of these GPUs, by nvidia-smi's numbers.",
)
@option("--launcher-fd", type=int, hidden=True)
@log_options
@settings_options(WorkerSettings)
def worker(
    restart: bool, gpus: str | None, launcher_fd: int | None, log_level: str, log_format: LogFormat, **options: Any
) -> None:
    """Serve a model.

    Loads it, then generates for all that is queued under its name.

    If the worker dies once it has taken tasks, another is started after a pause of 1 s, then 2 s, up to 60 s.

    \b
    Examples:
      promptmill worker --model HuggingFaceTB/SmolLM2-135M-Instruct
      promptmill worker --model ./my-model --served-name mine --quantization bnb-4bit
      promptmill worker --model model.gguf --device cpu --threads 8
      promptmill worker --model ./my-model --gpus all
    """
    settings = WorkerSettings.read(**options)
    if gpus is not None and not restart:
        raise InvalidSettingError("gpus and no-restart don't go together: what starts several workers watches them")
    several = workers_of(gpus, settings, options) if gpus is not None else None
    log = Log(log_level, log_format)
    sys.exit(_launch(log, options, several) if restart else _serve(settings, log, launcher_fd))


def _launch(log: Log, options: dict[str, Any], several: dict[str, dict[str, str]] | None) -> int:
    log.configure("Launcher")
    # In the environment, since a command line is everybody's to read, and the broker's URL may hold a password.
    options = {**options, "log_level": log.level, "log_format": log.format}
    given = {name: str(value) for name, value in options.items() if value is not None}
    environment = {**os.environ, **{environment_name(name): value for name, value in given.items()}}
    environment.pop(environment_name("gpus"), None)  # each worker's own GPU is named in CUDA_VISIBLE_DEVICES
    # -P: as with our script, what lies in the current folder must not be imported in a library's place.
    command = [sys.executable, "-P", "-m", "promptmill.cli", "worker", "--no-restart"]
    return Launcher(command, environment, several, prefixed=log.format == "text").run()


def _serve(settings: WorkerSettings, log: Log, launcher_fd: int | None) -> int:
    tell_ready = None if launcher_fd is None else tie_to_launcher(launcher_fd)
    # Here, not above: this pulls in Celery, and --help and the launcher should be quick.
    from promptmill_worker.worker import create_worker_app, run_worker

    return run_worker(create_worker_app(settings), settings, log, tell_ready)
