"""What the monitor answers in place of Flower, or besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import StaticFileHandler, url

from promptmill.monitor.broker_page import BrokerPage, QueueLengths, Queues
from promptmill.monitor.fleet_page import FleetData, FleetHistory, FleetPage
from promptmill.monitor.fleet_source import FleetSource
from promptmill.monitor.settings import MonitorSettings
from promptmill.monitor.withheld import ResultsWithheld, SubmittingWithheld, WatchedMetrics

__all__ = ["our_routes"]

_STATIC = Path(__file__).parent / "static"


def our_routes(settings: MonitorSettings) -> list[Any]:
    """Tornado's rules, to be looked at before Flower's."""
    prefix = f"/{settings.url_prefix.strip('/')}".rstrip("/")
    queues, fleet = {"queues": Queues(settings)}, {"source": FleetSource(settings)}
    return [
        url(rf"{prefix}/fleet", FleetPage, name="fleet"),
        url(rf"{prefix}/fleet/data", FleetData, fleet, name="fleet_data"),
        url(rf"{prefix}/fleet/history", FleetHistory, fleet, name="fleet_history"),
        url(rf"{prefix}/fleet/static/(.*)", StaticFileHandler, {"path": str(_STATIC)}, name="fleet_static"),
        url(rf"{prefix}/broker", BrokerPage, queues),
        url(rf"{prefix}/api/queues/length", QueueLengths, queues),
        url(rf"{prefix}/api/task/(?:apply|async-apply|send-task)/(.+)", SubmittingWithheld),
        url(rf"{prefix}/api/task/(?:result|abort)/(.+)", ResultsWithheld),
        url(rf"{prefix}/metrics", WatchedMetrics),
    ]
