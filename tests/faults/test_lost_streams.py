"""Streams whose worker, broker or connection is lost while they are read."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy
from redis import Redis
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, Delta, Task
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names

NAMES = Names("promptmill:")

#: Five seconds, at 40 words a second.
TEXT = " ".join(f"word{number}" for number in range(200))
TIMED = ("--echo-tokens-per-s", "40")
#: A worker that others give up after five seconds.
HASTY = (*TIMED, "--lease-s", "5", "--beat-s", "0.5")


class Reader:
    """Reads a task's stream on a thread of its own."""

    def __init__(self, pool: ThreadPoolExecutor, task: Task) -> None:
        self.task = task
        self.deltas: list[Delta] = []
        self._reading: Future[None] = pool.submit(self._read)

    def _read(self) -> None:
        self.deltas.extend(self.task.stream())

    def wait(self) -> None:
        self._reading.result(timeout=40)

    @property
    def restarts(self) -> list[int]:
        return [number for number, delta in enumerate(self.deltas) if delta.restarted]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def pieces_of(broker: Redis, task: Task) -> list[dict[bytes, bytes]]:
    """What workers have written into a task's stream."""
    return [fields for _, fields in broker.xrange(NAMES.stream(task.id, 0)) if b"run" in fields]


def runs_of(broker: Redis, task: Task) -> list[str]:
    """The claim that each piece of a task's stream comes from."""
    return [fields[b"run"].decode() for fields in pieces_of(broker, task)]


def test_where_workers_were_lost_another_goes_on_or_says_that_it_begins_anew_and_nothing_foreign_comes_between(
    tcp_url: str, broker: Redis, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with ExitStack() as stack:

        def start(name: str, *options: str) -> WorkerProcess:
            named = (*HASTY, "--worker-name", name, *options)
            return stack.enter_context(a_worker(tcp_url, tmp_path / name, *named, ready=False))

        lost = {how: start(how.name, "--max-in-flight", "3") for how in (signal.SIGKILL, signal.SIGSTOP)}
        client = stack.enter_context(Client(tcp_url, model="echo"))
        for worker in lost.values():
            worker.wait_until_ready()
        kinds: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 7}, {}]
        readers = [Reader(pool, client.submit(TEXT, stream=True, **kind)) for kind in kinds * 2]
        wait_until(lambda: all(len(reader.deltas) > 10 for reader in readers), "both workers are at it")
        for how, worker in lost.items():
            worker.send(how)
        start("another")
        wait_until(lambda: all(len(set(runs_of(broker, reader.task))) > 1 for reader in readers), "another is")
        lost[signal.SIGSTOP].send(signal.SIGCONT)
        for reader in readers:
            reader.wait()
            runs = runs_of(broker, reader.task)
            assert runs == sorted(runs, key=runs.index), "a piece of an old run came between those of a new one"
    for reader, kind in zip(readers, kinds * 2, strict=True):
        if kind:
            assert reader.restarts == []
        first, last = min(reader.restarts, default=0), max(reader.restarts, default=0)
        assert first > 10 or kind
        assert TEXT.startswith("".join(reader.deltas[:first]))
        assert "".join(reader.deltas[last:]) == TEXT


def test_a_worker_and_readers_that_are_cut_off_for_a_while_go_on_where_they_were(
    tcp_url: str, broker: Redis, proxy: Proxy, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with (
        Proxy(tcp_url) as workers,
        a_worker(workers.url, tmp_path / "log", *TIMED, "--lease-s", "20") as worker,
        # They give up on a broker much sooner than they stop waiting for a stream that has begun.
        Client(proxy.url, model="echo", broker_timeout_s=2) as client,
        Client(proxy.url, broker_timeout_s=2) as another,
    ):
        text = " ".join(f"word{number}" for number in range(400))
        task = client.submit(text, max_tokens=400, stream=True)
        readers = [Reader(pool, task), Reader(pool, another.task(task.id))]
        wait_until(lambda: all(len(reader.deltas) > 5 for reader in readers), "both read")
        proxy.reset(refuse=True)
        workers.reset(refuse=True)
        time.sleep(3)
        workers.heal()
        proxy.heal()
        for reader in readers:
            reader.wait()
            assert "".join(reader.deltas) == text
            assert reader.restarts == []
        assert task.result(timeout_s=9).attempts == 1
        length = 0
        for piece in pieces_of(broker, task):
            assert int(piece[b"offset"]) <= length, "a piece was lost"
            length = int(piece[b"offset"]) + len(piece[b"text"])
        assert max(piece[b"text"].count(b"word") for piece in pieces_of(broker, task)) > 10, "they came together"
        assert "Traceback" not in worker.log


def test_a_stream_goes_on_over_a_broker_that_is_killed(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    broker = EmbeddedBroker(tmp_path / "data", appendfsync="always")
    with (
        broker,
        a_worker(broker.url, tmp_path / "log", *TIMED),
        Client(broker.url, model="echo") as client,
        Client(broker.url, model="echo") as another,
    ):
        task = client.submit(TEXT, stream=True)
        readers = [Reader(pool, task), Reader(pool, another.task(task.id))]
        wait_until(lambda: all(len(reader.deltas) > 5 for reader in readers), "both read")
        assert broker.process_id is not None
        os.kill(broker.process_id, signal.SIGKILL)
        broker.stop()
        broker.start()
        for reader in readers:
            reader.wait()
            assert "".join(reader.deltas) == TEXT
            assert reader.restarts == []


@pytest.mark.soak
def test_a_stream_goes_on_when_the_broker_has_forgotten_everything(
    tcp_url: str, broker: Redis, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with a_worker(tcp_url, tmp_path / "log", *TIMED), Client(tcp_url, model="echo") as client:
        reader = Reader(pool, client.submit(TEXT, stream=True, temperature=0))
        wait_until(lambda: len(reader.deltas) > 5, "it is read")
        broker.flushall()
        reader.wait()
        assert "".join(reader.deltas) == TEXT
        assert reader.restarts == []
