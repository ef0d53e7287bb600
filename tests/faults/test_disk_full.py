"""A broker that can't write to its disk, and refuses all writes until it can."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from brokers import client_of
from redis import Redis
from redis.exceptions import ResponseError
from workers import a_worker, wait_until

from promptmill import BrokerUnavailableError, Client
from promptmill.embedded import EmbeddedBroker


def refuses_writes(redis: Redis) -> bool:
    try:
        redis.set("probe", "1", px=1000)
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False


def test_a_broker_that_can_not_write_to_its_disk_is_waited_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    prompts = [f"{number} word word" for number in range(60)]
    answered: list[str] = []
    with (
        EmbeddedBroker(data, appendfsync="everysec") as broker,
        client_of(broker.url) as redis,
        Client(broker.url, model="echo", broker_timeout_s=3) as client,
        a_worker(broker.url, tmp_path / "log", "--echo-tokens-per-s", "4") as worker,
    ):
        results = client.map(prompts, chunk_size=4, max_in_flight=16)
        running = threading.Thread(target=lambda: answered.extend(result.text for result in results), daemon=True)
        running.start()
        wait_until(lambda: answered, "the map has begun")
        # A directory where the snapshot should go stands for a disk that is full.
        (data / "dump.rdb").mkdir()
        redis.config_set("save", "3600 1")
        redis.bgsave()
        wait_until(lambda: refuses_writes(redis), "the broker refuses writes")
        before = len(answered)
        with pytest.raises(BrokerUnavailableError, match="MISCONF"):
            client.submit("not now")
        threading.Event().wait(2)
        assert len(answered) <= before + 16
        (data / "dump.rdb").rmdir()
        redis.bgsave()
        wait_until(lambda: not refuses_writes(redis), "the broker takes writes")
        running.join(60)
        assert answered == prompts
        assert client.generate("after").text == "after"
        worker_lines = worker.log.count("\n")
    assert worker_lines < 500
