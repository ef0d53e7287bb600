"""Clients that wait while the broker is away for longer than their patience with a first contact."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from proxy import Proxy
from submitter import count_deliveries
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, ResultTimeoutError
from promptmill.embedded import EmbeddedBroker

#: How long the broker is away, in seconds; the clients here call a broker that they never met away after two.
AWAY_S = 4.0

CUTS: list[Callable[[Proxy], None]] = [lambda proxy: proxy.reset(refuse=True), lambda proxy: proxy.hold()]
each_cut = pytest.mark.parametrize("cut", CUTS, ids=["refused", "black hole"])


@pytest.fixture(scope="module")
def worker(tcp_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Reaches the broker at all times; 100 words a second."""
    assert tcp_broker.tcp_url is not None
    options = ("--echo-tokens-per-s", "100")
    with a_worker(tcp_broker.tcp_url, tmp_path_factory.mktemp("waiting") / "log", *options) as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, proxy: Proxy) -> Iterator[Client]:
    with Client(proxy.url, model="echo", broker_timeout_s=2) as client:
        yield client
        proxy.heal()


def numbered(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and verb of what the client has said about the broker."""
    words = {"is away": "away", "is back": "back"}
    return [
        (record.levelno, word)
        for record in caplog.records
        for phrase, word in words.items()
        if record.name == "promptmill.outage" and phrase in record.getMessage()
    ]


def heal_when_noticed(client: Client, proxy: Proxy) -> None:
    """However long this machine stands still meanwhile."""
    wait_until(lambda: client._session.outage.lasts, "it is noticed", 60)
    time.sleep(AWAY_S)
    proxy.heal()


ONE_OUTAGE = [(logging.WARNING, "away"), (logging.INFO, "back")]


@each_cut
def test_a_map_waits_for_the_broker_and_says_so_once(
    client: Client, proxy: Proxy, caplog: pytest.LogCaptureFixture, cut: Callable[[Proxy], None]
) -> None:
    caplog.set_level(logging.INFO, "promptmill")
    told = count_deliveries(client)
    results = client.map(numbered(400), max_in_flight=40, chunk_size=8)
    read = [next(results) for _ in range(50)]
    cut(proxy)
    threading.Thread(target=heal_when_noticed, args=(client, proxy)).start()
    read += results
    assert [(result.index, result.text) for result in read] == list(enumerate(numbered(400)))
    assert set(told.values()) == {1}
    wait_until(lambda: said(caplog) == ONE_OUTAGE, "one warning, and that it is over", 60)


@each_cut
def test_a_waiting_task_says_once_that_the_broker_is_away_and_ends_when_it_is_back(
    client: Client, proxy: Proxy, caplog: pytest.LogCaptureFixture, cut: Callable[[Proxy], None]
) -> None:
    caplog.set_level(logging.INFO, "promptmill")
    task = client.submit("word " * 400, max_tokens=400)
    cut(proxy)
    wait_until(lambda: client._session.outage.lasts, "it is noticed", 60)
    with pytest.raises(ResultTimeoutError):
        task.result(timeout_s=1)
    proxy.heal()
    assert task.result(timeout_s=20).text == ("word " * 400).strip()
    wait_until(lambda: said(caplog) == ONE_OUTAGE, "one warning, and that it is over", 60)


@pytest.mark.usefixtures("worker")
def test_one_dropped_connection_is_no_outage(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "promptmill")
    read = []
    with Client(proxy.url, model="echo", broker_timeout_s=30) as client:
        for result in client.map(numbered(200), max_in_flight=20, chunk_size=4):
            read.append(result.index)
            if result.index in (50, 100):
                proxy.reset()
    assert read == list(range(200))
    assert said(caplog) == []


@each_cut
def test_what_has_arrived_can_be_read_while_the_broker_is_away(
    client: Client, proxy: Proxy, cut: Callable[[Proxy], None]
) -> None:
    told = count_deliveries(client)
    results = client.map(numbered(20), chunk_size=5)
    first = next(results).index
    wait_until(lambda: len(told) == 20, "all have arrived")
    cut(proxy)
    assert [first, *(result.index for result in results)] == list(range(20))


@each_cut
def test_a_map_can_be_left_while_the_broker_is_away(client: Client, proxy: Proxy, cut: Callable[[Proxy], None]) -> None:
    results = client.map(numbered(100), max_in_flight=20, chunk_size=5)
    next(results)
    cut(proxy)
    started_at = time.monotonic()
    results.close()
    assert time.monotonic() - started_at < 20


@each_cut
@pytest.mark.usefixtures("worker")
def test_closing_the_client_ends_a_map_that_waits_for_the_broker(proxy: Proxy, cut: Callable[[Proxy], None]) -> None:
    read: list[int] = []
    with Client(proxy.url, model="echo", broker_timeout_s=3) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            lambda: read.extend(result.index for result in client.map(numbered(2000), max_in_flight=8))
        )
        wait_until(lambda: len(read) > 20, "the map is under way")
        cut(proxy)
        wait_until(lambda: client._session.outage.lasts, "it waits")
        started_at = time.monotonic()
        client.close()
        with pytest.raises(ResultTimeoutError, match="the client was closed"):
            waiting.result(timeout=30)
        assert time.monotonic() - started_at < 30


def test_ctrl_c_ends_a_map_that_waits_for_the_broker(worker: WorkerProcess, proxy: Proxy) -> None:
    program = """
import sys
from promptmill import Client
with Client(sys.argv[1], model="echo") as client:
    for result in client.map((f"prompt {number}" for number in range(100_000)), max_in_flight=8):
        print(result.index, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, proxy.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as mapping:
        assert mapping.stdout is not None
        while mapping.stdout.readline() != "20\n":
            assert mapping.poll() is None
        proxy.hold()
        time.sleep(0.5)
        mapping.send_signal(signal.SIGINT)
        _, errors = mapping.communicate(timeout=20)
    assert mapping.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
