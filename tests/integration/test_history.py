"""The fleet's history and rates, and what the exporter makes of them."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import client_of, free_port
from prometheus_client.parser import text_string_to_metric_families
from workers import a_worker

from promptmill import Client, InvalidSettingError
from promptmill.blocking import BlockingTransport, run
from promptmill.history import POINTS, HistoryPoint, ModelPoint, _rates, add_point, read_history
from promptmill.ledger import Ledger
from promptmill.monitor.exporter import exporter
from promptmill.names import Names
from promptmill.settings import Settings

NAMES = Names("promptmill:")


@pytest.fixture
def transport(any_broker_url: str) -> Iterator[BlockingTransport]:
    with client_of(any_broker_url) as client:
        yield BlockingTransport(client)


@pytest.fixture
def client(any_broker_url: str) -> Iterator[Client]:
    with Client(any_broker_url, model="echo") as client:
        yield client


def add(transport: BlockingTransport) -> HistoryPoint:
    """A point, as if the last one were long ago."""
    run(transport.execute([("DEL", NAMES.history_turn)]))
    assert run(add_point(transport, NAMES))
    return run(read_history(transport, NAMES))[-1]


def test_one_of_several_adds_a_point(transport: BlockingTransport) -> None:
    assert [run(add_point(transport, NAMES)) for _ in range(3)] == [True, False, False]
    assert len(run(read_history(transport, NAMES))) == 1


def test_a_point_has_what_came_and_what_ended_and_rates_come_of_two(
    transport: BlockingTransport, client: Client, any_broker_url: str, tmp_path: Path
) -> None:
    with a_worker(any_broker_url, tmp_path / "log"):
        list(client.map(["a"] * 100))
        tasks = [client.submit("b", model="nobody") for _ in range(7)]
        first = add(transport)
        assert (first.models["echo"].entered, first.models["echo"].ended) == (100, 100)
        assert (first.models["nobody"].entered, first.models["nobody"].ended) == (7, 0)
        assert (first.models["nobody"].unfinished, first.models["nobody"].workers) == (7, 0)
        tasks[0].cancel()
        client.generate("c")
        second = add(transport)
        assert second.models["nobody"].ended == 1
        oldest = run(read_history(transport, NAMES))[0]  # the worker's own, from its start
        elapsed_s = second.at - oldest.at
        served, waiting = client.fleet().models
        assert (served.name, served.unfinished, served.drain_s) == ("echo", 0, 0.0)
        came = 101 - (oldest.models["echo"].entered if "echo" in oldest.models else 0)
        assert served.arrivals_per_s == pytest.approx(came / elapsed_s, rel=0.01)
        assert served.completions_per_s == pytest.approx(came / elapsed_s, rel=0.01)
        assert (waiting.unfinished, waiting.completions_per_s) == (6, pytest.approx(1 / elapsed_s, rel=0.01))
        assert waiting.drain_s is None, "nobody serves it: what ended was cancelled"
        served_again = waiting.model_copy(update={"workers": 1})
        assert served_again.drain_s == pytest.approx(6 * elapsed_s, rel=0.01)


def test_without_anything_that_ends_nobody_knows_when_it_is_done(transport: BlockingTransport, client: Client) -> None:
    client.submit("a", model="nobody")
    add(transport)
    add(transport)
    [model] = client.fleet().models
    assert (model.unfinished, model.completions_per_s, model.drain_s) == (1, 0.0, None)


def test_an_hour_is_kept(transport: BlockingTransport) -> None:
    for _ in range(POINTS + 5):
        add(transport)
    points = run(read_history(transport, NAMES))
    assert len(points) == POINTS
    assert [point.at for point in points] == sorted(point.at for point in points)


def test_counts_of_too_many_models_begin_anew(any_broker_url: str) -> None:
    with client_of(any_broker_url) as broker, Client(any_broker_url) as client:
        broker.hset(NAMES.totals, mapping={f"promptmill.model{number}|entered": 5 for number in range(1001)})
        assert Ledger(broker, NAMES).sweep("me", 1.0, 3.0) == []
        assert not broker.exists(NAMES.totals)
        client.submit("a", model="m")
        assert broker.hgetall(NAMES.totals) == {b"promptmill.m|entered": b"1"}


def test_a_count_that_has_begun_anew_makes_no_rate_negative() -> None:
    def point(at: float, entered: int) -> HistoryPoint:
        model = ModelPoint(
            unfinished=0, in_flight=0, oldest_s=0, workers=1, tokens_per_s=0, entered=entered, ended=entered
        )
        return HistoryPoint(at=at, models={"m": model})

    assert _rates(point(0, 100), point(10, 120)) == {"promptmill.m": "2 2"}
    assert _rates(point(0, 100), point(10, 50)) == {"promptmill.m": "5 5"}


def exported(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_exporter_tells_what_is_so(client: Client, any_broker_url: str, tmp_path: Path) -> None:
    port = free_port()
    with (
        a_worker(any_broker_url, tmp_path / "log"),
        exporter(Settings.read({}, broker_url=any_broker_url), "127.0.0.1", port),
    ):
        list(client.map(["a"] * 50))
        for _ in range(3):
            client.submit("b", model="nobody")
        seen = exported(port)
    assert seen["promptmill_broker_up"] == 1
    assert (seen["promptmill_workers echo"], seen["promptmill_workers nobody"]) == (1, 0)
    assert (seen["promptmill_unfinished_requests echo"], seen["promptmill_unfinished_requests nobody"]) == (0, 3)
    assert (seen["promptmill_requests_entered_total echo"], seen["promptmill_requests_ended_total echo"]) == (50, 50)
    assert (seen["promptmill_queue_paused nobody"], seen["promptmill_dead_letters"]) == (0, 0)
    assert seen["promptmill_queue_oldest_seconds nobody"] > 0
    assert seen["promptmill_broker_memory_used_bytes"] > 100_000
    assert "promptmill_broker_memory_max_bytes" in seen


def test_of_a_broker_that_is_away_the_exporter_tells_that() -> None:
    port = free_port()
    with exporter(Settings.read({}, broker_url=f"redis://127.0.0.1:{free_port()}/0"), "127.0.0.1", port):
        assert exported(port) == {"promptmill_broker_up": 0}
        with (
            pytest.raises(InvalidSettingError, match=f"127.0.0.1:{port} can't be used"),
            exporter(Settings.read({}), "127.0.0.1", port),
        ):
            pass
