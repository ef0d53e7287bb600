"""Workers and clients that are cut off from a broker which lives on, longer than a lease lasts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from brokers import client_of
from proxy import Proxy
from submitter import Submitter, count_deliveries
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, GenerationResult
from promptmill.embedded import EmbeddedBroker

#: At 10 words a second: three seconds.
THREE_SECONDS = "word " * 30
BUSY = ("--served-name", "busy", "--echo-tokens-per-s", "10", "--max-in-flight", "16")
MAPPED = 400


@dataclass
class CutOff:
    """What was behind one bad network."""

    proxy: Proxy
    busy: WorkerProcess
    #: Prompts of the idle worker, submitted while it was cut off.
    idle: Submitter
    client: Client
    #: How often the client was told of each prompt of its map.
    told: Counter[str]
    map: Future[list[GenerationResult]] | None = None

    def run_map(self) -> list[GenerationResult]:
        """A map over prompts that come slowly, so that a cut falls into it."""

        def prompts() -> Iterator[str]:
            for number in range(MAPPED):
                time.sleep(0.015)
                yield f"prompt {number}"

        return list(self.client.map(prompts(), max_in_flight=48, chunk_size=8))


@dataclass
class Cut:
    """A run in which one side was cut off by resets and refusals, and one by a black hole."""

    #: The broker's, past the bad networks.
    url: str
    sides: dict[str, CutOff]
    #: Prompts that the busy workers had, and one that was not cut off.
    busy: Submitter
    #: The one that was not cut off.
    direct: WorkerProcess
    #: From the healing to the last answer, in seconds.
    healed_in_s: dict[str, float]


def cut_off(stack: ExitStack, name: str, broker_url: str, folder: Path) -> CutOff:
    proxy = stack.enter_context(Proxy(broker_url))
    busy = stack.enter_context(a_worker(proxy.url, folder / f"{name}-busy", *BUSY, ready=False))
    model = f"idle-{name}"
    idle = stack.enter_context(a_worker(proxy.url, folder / model, "--served-name", model, ready=False))
    client = stack.enter_context(Client(proxy.url, model="busy"))
    idle.wait_until_ready()
    busy.wait_until_ready()
    return CutOff(proxy, busy, Submitter(broker_url, model), client, count_deliveries(client))


@pytest.fixture(scope="module", params=[12, pytest.param(25, marks=pytest.mark.soak)])
def cut(
    request: pytest.FixtureRequest, tcp_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cut]:
    """Both cuts at once, to save time; the tests look at what came of it."""
    url = tcp_broker.tcp_url
    assert url is not None
    with client_of(url) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("cut")
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))  # left last: clients that are closed end their maps
        direct = stack.enter_context(a_worker(url, folder / "direct", *BUSY, ready=False))
        sides = {name: cut_off(stack, name, url, folder) for name in ("reset", "hole")}
        direct.wait_until_ready()
        for side in sides.values():
            side.map = pool.submit(side.run_map)
        wait_until(lambda: all(side.told for side in sides.values()), "both maps are under way")
        busy = Submitter(url, "busy")
        busy.submit([THREE_SECONDS] * 60)
        wait_until(lambda: busy.redis.zcard("promptmill:leases") > 40, "all are busy")
        sides["reset"].proxy.reset(refuse=True)
        sides["hole"].proxy.hold()
        for side in sides.values():
            side.idle.submit([f"prompt {number}" for number in range(5)])
        time.sleep(request.param)
        for side in sides.values():
            side.proxy.heal()
        healed_in_s = {name: side.idle.wait(30) for name, side in sides.items()}
        busy.wait(60)
        for side in sides.values():
            assert side.map is not None
            side.map.exception(timeout=60)
        yield Cut(url, sides, busy, direct, healed_in_s)


SIDES = pytest.mark.parametrize("side", ["reset", "hole"])


def test_what_a_busy_worker_had_is_answered_once(cut: Cut) -> None:
    assert {result.attempts for result in cut.busy.check().values()} == {1, 2}
    assert "swept: lease" in cut.direct.log


def test_busy_workers_that_were_cut_off_go_on(cut: Cut) -> None:
    def all_three_answer() -> bool:
        again = Submitter(cut.url, "busy")
        again.submit(["word " * 5] * 48)
        again.wait(30)
        return len({result.worker for result in again.check().values()}) == 3

    wait_until(all_three_answer, "all three busy workers answer", 30)


@SIDES
def test_what_came_for_an_idle_worker_is_answered_once_when_it_is_back(cut: Cut, side: str) -> None:
    cut.sides[side].idle.check()
    assert cut.healed_in_s[side] < 20


@SIDES
def test_a_map_goes_on_when_its_client_is_back(cut: Cut, side: str) -> None:
    run = cut.sides[side].map
    assert run is not None
    assert [(result.index, result.text) for result in run.result()] == [
        (number, f"prompt {number}") for number in range(MAPPED)
    ]
    assert set(cut.sides[side].told.values()) == {1}
    assert len(cut.sides[side].told) == MAPPED
