"""A master, a replica and sentinels: the master dies, and work goes on at the new one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from brokers import free_port
from servers import a_server
from workers import WorkerProcess, a_worker, wait_until

from promptmill import BrokerUnavailableError, Client
from promptmill.app import create_app
from promptmill.embedded.server import find_server
from promptmill.settings import Settings

PASSWORD, SENTINEL_PASSWORD = "hidden-password", "hidden-from-the-rest"
GROUP = "promptmill-master"


@dataclass(frozen=True)
class Cluster:
    master: WorkerProcess
    replica_port: int
    url: str
    settings: dict[str, str]

    def options(self) -> list[str]:
        return [item for name, value in self.settings.items() for item in (f"--{name.replace('_', '-')}", value)]


@contextmanager
def a_cluster(folder: Path, sentinel_password: str | None) -> Iterator[Cluster]:
    """One master, one replica, two sentinels that have to agree."""
    server, ports = find_server(), [free_port() for _ in range(4)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                a_server(server, folder / name, _data_options(port, following), _client(port, PASSWORD))
            )
            for name, port, following in (("master", ports[0], None), ("replica", ports[1], ports[0]))
        ]
        for port in ports[2:]:
            options = _sentinel_options(port, ports[0], sentinel_password)
            client = _client(port, sentinel_password)
            stack.enter_context(a_server(server, folder / f"sentinel-{port}", options, client, "--sentinel"))
        with _client(ports[2], sentinel_password) as sentinel:
            wait_until(lambda: _is_watched(sentinel), "the sentinels know the replica and each other", timeout_s=30)
        settings = {"sentinel_master": GROUP}
        if sentinel_password:
            settings["sentinel_password"] = sentinel_password
        url = f"sentinel://:{PASSWORD}@127.0.0.1:{ports[2]}/1;sentinel://127.0.0.1:{ports[3]}"
        yield Cluster(processes[0], ports[1], url, settings)


def _client(port: int, password: str | None) -> redis.Redis:
    return redis.Redis(port=port, password=password)


def _data_options(port: int, following: int | None) -> dict[str, str]:
    options = {"port": str(port), "requirepass": PASSWORD, "masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
    return options if following is None else {**options, "replicaof 127.0.0.1": str(following)}


def _sentinel_options(port: int, master_port: int, password: str | None) -> dict[str, str]:
    # A line of a sentinel's has several words; the last is the value.
    options = {
        "port": str(port),
        f"sentinel monitor {GROUP} 127.0.0.1 {master_port}": "2",
        f"sentinel auth-pass {GROUP}": PASSWORD,
        f"sentinel down-after-milliseconds {GROUP}": "5000",
        f"sentinel failover-timeout {GROUP}": "5000",
    }
    return {**options, "requirepass": password, "sentinel sentinel-pass": password} if password else options


def _is_watched(sentinel: redis.Redis) -> bool:
    state = sentinel.sentinel_masters()[GROUP]
    return state["num-slaves"] == state["num-other-sentinels"] == 1 and state["is_master"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with a_cluster(tmp_path_factory.mktemp("sentinel"), SENTINEL_PASSWORD) as cluster:
        yield cluster


def test_sentinels_are_given_their_own_password_and_the_master_its_own(cluster: Cluster) -> None:
    with Client(cluster.url, model="echo", **cluster.settings) as client:
        assert client.fleet().workers == ()
    app = create_app(Settings.read({}, broker_url=cluster.url, **cluster.settings))
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
    assert app.backend.client.ping()
    for wrong in (
        {"sentinel_master": GROUP},
        {"sentinel_master": GROUP, "sentinel_password": PASSWORD},
        {**cluster.settings, "sentinel_master": "another"},
    ):
        with (
            Client(cluster.url, model="echo", broker_timeout_s=0.5, **wrong) as client,
            pytest.raises(BrokerUnavailableError, match=r"no sentinel at .* names a living master") as caught,
        ):
            client.fleet()
        assert "hidden" not in str(caught.value)


def test_sentinels_without_a_password_need_none(tmp_path: Path) -> None:
    with a_cluster(tmp_path, None) as cluster, Client(cluster.url, model="echo", **cluster.settings) as client:
        assert client.fleet().workers == ()
        app = create_app(Settings.read({}, broker_url=cluster.url, **cluster.settings))
        app.connection_for_write().ensure_connection(max_retries=1)
        assert app.backend.client.ping()


def test_a_killed_masters_prompts_are_all_answered_once_by_its_replica(cluster: Cluster, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(300)]
    options = ("--echo-tokens-per-s", "4", "--max-in-flight", "32", *cluster.options())
    with (
        a_worker(cluster.url, tmp_path / "log", *options) as worker,
        Client(cluster.url, model="echo", broker_timeout_s=60, **cluster.settings) as client,
    ):
        process_id = worker.pid
        results = []
        for result in client.map(prompts, ordered=False, chunk_size=8, max_in_flight=128):
            results.append(result)
            if len(results) == 50:
                cluster.master.send(signal.SIGKILL)
        assert sorted(result.index for result in results) == list(range(300))
        assert all(result.text == prompts[result.index] for result in results)
        assert client.generate("after it").text == "after it"
        app = create_app(Settings.read({}, broker_url=cluster.url, **cluster.settings))
        call = app.send_task("promptmill.generate", args=["plain"], queue="promptmill.echo", ignore_result=False)
        assert call.get(timeout=30)["text"] == "plain"
        app.close()
        assert worker.pid == process_id
        assert "hidden" not in worker.log
        with redis.Redis(port=cluster.replica_port, password=PASSWORD, db=1) as new_master:
            assert new_master.role()[0] == b"master"
            assert new_master.zcard("promptmill:leases") == 0
