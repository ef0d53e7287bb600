"""``promptmill monitor``: Flower with our pages."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import click

from promptmill.cli.options import log_options, settings_options
from promptmill.errors import InvalidSettingError
from promptmill.log_format import Log, LogFormat
from promptmill.monitor.settings import MonitorSettings
from promptmill.settings import Settings

__all__ = ["monitor"]

OPTIONS = [
    *(name for name in Settings.model_fields),
    *(name for name in MonitorSettings.__annotations__ if name in MonitorSettings.model_fields),
]


@click.command()
@log_options
@settings_options(MonitorSettings, *OPTIONS)
def monitor(log_level: str, log_format: LogFormat, **options: Any) -> None:
    """Show the fleet, its tasks and the broker in a browser.

    It is Flower, with a page of the fleet, and without prompts and answers. Anybody on this machine may look; for other
    machines set --listen-host, and --password-file or OAuth.

    \b
    Examples:
      promptmill monitor
      promptmill monitor --listen-host 0.0.0.0 --password-file monitor-logins
    """
    settings = MonitorSettings.read(**options)
    if importlib.util.find_spec("flower") is None:
        raise InvalidSettingError("the monitor needs Flower: pip install 'promptmill[monitor]'")
    Log(log_level, log_format).configure("Monitor")
    for name in ("tornado", "flower", "kombu", "celery", "redis", "asyncio"):
        # Below this they tell of each request and message, with its URL and its arguments.
        logging.getLogger(name).setLevel(logging.ERROR)
    # Here, not above: an installation without the monitor's packages has this command, too.
    from promptmill.monitor.server import Monitor

    Monitor(settings).run()
