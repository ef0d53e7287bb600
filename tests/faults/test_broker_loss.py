"""Brokers that are killed, that forget their last second, and that are emptied by mistake."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from redis import Redis
from submitter import count_deliveries
from workers import a_worker, wait_until

from promptmill import Client, GenerationResult, ResultNotFoundError
from promptmill.embedded import EmbeddedBroker

#: Each word takes 20 ms.
TIMED = ("--echo-tokens-per-s", "50", "--max-in-flight", "16")
TWO_SECONDS = "word " * 100
MAPPED = 800


def run_map(client: Client, read: list[GenerationResult]) -> None:
    """A map of some seconds; what is read is put into ``read``."""
    prompts = (f"prompt number {number}" for number in range(MAPPED))
    read.extend(client.map(prompts, max_in_flight=64, chunk_size=8))


def is_right(read: list[GenerationResult]) -> bool:
    expected = [(number, f"prompt number {number}") for number in range(MAPPED)]
    return [(result.index, result.text) for result in read] == expected


def append_only_file(directory: Path) -> Path:
    [path] = directory.glob("appendonlydir/*.incr.aof")
    return path


def kill_and_restart(broker: EmbeddedBroker, keep_bytes: int | None) -> None:
    """SIGKILL, and a start on the same data a second later.

    Args:
        broker: To be killed.
        keep_bytes: Where its append-only file is cut, as if the rest had not reached the disk.
    """
    assert broker.process_id is not None
    os.kill(broker.process_id, signal.SIGKILL)
    broker.stop()
    if keep_bytes is not None:
        assert broker._directory is not None
        os.truncate(append_only_file(broker._directory), keep_bytes)
    time.sleep(1)
    broker.start()


@pytest.mark.parametrize(
    ("appendfsync", "forgets"),
    [
        pytest.param("always", False, id="always"),
        pytest.param("everysec", False, id="everysec", marks=pytest.mark.soak),
        pytest.param("everysec", True, id="a second forgotten"),
    ],
)
def test_a_map_and_a_waiting_task_end_right_over_a_broker_that_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, appendfsync: Literal["always", "everysec"], forgets: bool
) -> None:
    data = tmp_path / "data"
    broker = EmbeddedBroker(data, appendfsync=appendfsync)
    read: list[GenerationResult] = []
    with (
        broker,
        ThreadPoolExecutor(1) as pool,
        a_worker(broker.url, tmp_path / "log", *TIMED),
        Client(broker.url, model="echo") as client,
    ):
        told = count_deliveries(client)
        mapping = pool.submit(run_map, client, read)
        wait_until(lambda: len(read) > 100, "the map is under way")
        keep_bytes = append_only_file(data).stat().st_size
        task = client.submit(TWO_SECONDS)
        time.sleep(1)
        kill_and_restart(broker, keep_bytes if forgets else None)
        assert not mapping.done()
        mapping.result(timeout=60)
        assert task.result(timeout_s=60).text == TWO_SECONDS.strip()
        assert is_right(read)
        assert len(told) == MAPPED + 1
        if not forgets:
            assert set(told.values()) == {1}
        assert client.generate("afterwards").text == "afterwards"
        assert ("has forgotten" in caplog.text) is forgets


def test_a_broker_that_is_emptied_by_mistake_loses_no_prompt_that_somebody_waits_for(
    tcp_url: str, broker: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[GenerationResult] = []
    with (
        ThreadPoolExecutor(2) as pool,
        a_worker(tcp_url, tmp_path / "log", *TIMED),
        Client(tcp_url, model="echo") as client,
    ):
        with Client(tcp_url, model="echo") as gone:
            left = gone.submit("word " * 250)
        mapping = pool.submit(run_map, client, read)
        task = client.submit(TWO_SECONDS)
        by_id = pool.submit(client.task(left.id).result)
        wait_until(lambda: len(read) > 100, "the map is under way")
        broker.flushall()
        with pytest.raises(ResultNotFoundError, match=left.id):
            by_id.result(timeout=30)
        mapping.result(timeout=60)
        assert is_right(read)
        assert task.result(timeout_s=60).text == TWO_SECONDS.strip()
        assert "has forgotten" in caplog.text
