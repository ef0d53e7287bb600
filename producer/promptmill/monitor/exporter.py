"""What the fleet as a whole tells Prometheus; each worker tells more of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from promptmill.blocking import BlockingTransport, run
from promptmill.broker_errors import broker_errors
from promptmill.errors import BrokerUnavailableError, InvalidSettingError
from promptmill.fleet import Fleet, ModelStatus, read_fleet
from promptmill.names import Names, queue_name
from promptmill.settings import Settings

__all__ = ["FleetCollector", "exporter"]

#: How long the broker may take for an answer, in seconds: less than Prometheus waits for ours.
BROKER_TIMEOUT_S = 4.0

#: What is told of each model, as it is now.
GAUGES: dict[str, tuple[str, Callable[[ModelStatus], float]]] = {
    "unfinished_requests": ("Prompts that wait or run: scale on this.", lambda model: model.unfinished),
    "in_flight_requests": ("Prompts that workers have.", lambda model: model.in_flight),
    "queue_oldest_seconds": ("How long the oldest that waits has waited.", lambda model: model.oldest_s),
    "queue_paused": ("1 if the queue is paused.", lambda model: model.paused),
    "workers": ("Living workers.", lambda model: model.workers),
}


class FleetCollector(Collector):
    """Asks the broker at each scrape. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = Names(settings.key_prefix)
        self._transport = BlockingTransport.open(settings, BROKER_TIMEOUT_S)

    def collect(self) -> Iterator[Metric]:
        """All figures; of a broker that does not answer, that alone."""
        up = GaugeMetricFamily("promptmill_broker_up", "1 if the broker answers.")
        try:
            with broker_errors(self._settings):
                found = [*self._of_fleet(), *self._of_broker()]
        except BrokerUnavailableError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from found

    def describe(self) -> Iterator[Metric]:
        """Nothing: or the broker would be asked before there is a scrape."""
        return iter(())

    def close(self) -> None:
        """Ends the connections."""
        run(self._transport.close())

    def _of_fleet(self) -> Iterator[Metric]:
        fleet: Fleet = run(read_fleet(self._transport, self._names))
        for name, (help_text, value) in GAUGES.items():
            family: Metric = GaugeMetricFamily(f"promptmill_{name}", help_text, labels=["model_name"])
            for model in fleet.models:
                family.add_sample(family.name, {"model_name": model.name}, value(model))
            yield family
        [totals] = run(self._transport.execute([("HGETALL", self._names.totals)]))
        for name, field, help_text in (
            ("requests_entered", "entered", "Prompts that came."),
            ("requests_ended", "ended", "Prompts that ended, one way or another."),
        ):
            counter = CounterMetricFamily(f"promptmill_{name}", help_text, labels=["model_name"])
            for model in fleet.models:
                count = totals.get(f"{queue_name(model.name)}|{field}".encode(), 0)
                counter.add_metric([model.name], int(count))
            yield counter

    def _of_broker(self) -> Iterator[Metric]:
        letters, memory = run(self._transport.execute([("XLEN", self._names.dead_letters), ("INFO", "memory")]))
        for name, help_text, value in (
            ("dead_letters", "Prompts that killed their workers and were stopped.", letters),
            ("broker_memory_used_bytes", "Memory that the broker uses.", memory["used_memory"]),
            ("broker_memory_max_bytes", "The most it may use; 0 is no limit.", memory["maxmemory"]),
        ):
            yield GaugeMetricFamily(f"promptmill_{name}", help_text, value=value)


@contextmanager
def exporter(settings: Settings, host: str, port: int) -> Iterator[None]:
    """Serves the fleet's figures for Prometheus, on a thread, while the block runs.

    Args:
        settings: Where the broker is.
        host: Address to listen on.
        port: TCP port.

    Raises:
        InvalidSettingError: the port can't be used.
    """
    collector = FleetCollector(settings)
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = _started(host, port, registry)
    except OSError as error:
        raise InvalidSettingError(f"metrics_port: {host}:{port} can't be used: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        collector.close()


def _started(host: str, port: int, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    return start_http_server(port, host, registry)
