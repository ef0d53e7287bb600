from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from brokers import client_of, free_port
from celery import Celery
from redis.exceptions import AuthenticationError, OutOfMemoryError
from redis.exceptions import ConnectionError as RedisConnectionError

from promptmill.embedded import EmbeddedBroker
from promptmill.errors import BrokerUnavailableError, InvalidSettingError

#: A program that owns a broker, tells us about it, and sleeps.
OWNER = """
import os, sys, threading, time
from pathlib import Path
from promptmill.embedded import EmbeddedBroker

broker = EmbeddedBroker(Path(sys.argv[1]))
{start}
print(broker.process_id, broker.url, flush=True)
{then}
"""


def socket_of(url: str) -> Path:
    return Path(urlsplit(url).path)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s: {what}"
        time.sleep(0.02)


def runs(process_id: int) -> bool:
    """Whether the process lives; a zombie, waiting for its parent to ask, doesn't."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").exists()


def parent_of(process_id: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(process_id)]))


@contextmanager
def an_owner(
    directory: Path, *, start: str = "broker.start()", then: str = "time.sleep(600)"
) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Another process that has started a broker; it, the server's process id, and the broker's URL."""
    program = OWNER.format(start=start, then=then)
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            process_id, url = owner.stdout.readline().split()
            yield owner, int(process_id), url
        finally:
            owner.kill()


def assert_nothing_is_left(process_id: int, url: str) -> None:
    wait_until(lambda: not runs(process_id), "the server has ended")
    wait_until(lambda: not socket_of(url).parent.exists(), "the private folder is gone")


def test_a_broker_answers_as_soon_as_it_is_started_and_leaves_nothing() -> None:
    with EmbeddedBroker() as broker:
        assert broker.process_id is not None
        assert runs(broker.process_id)
        assert client_of(broker.url).ping()
        process_id, url = broker.process_id, broker.url
    assert broker.process_id is None
    assert not runs(process_id)
    assert not socket_of(url).parent.exists()


def test_celery_sends_and_reads_results_through_its_url() -> None:
    with EmbeddedBroker() as broker:
        app = Celery("test", broker=broker.url, backend=broker.url, set_as_current=False)
        app.send_task("a.task", ["an argument"], queue="a-queue")
        app.backend.store_result("a-task-id", "a result", "SUCCESS")
        assert client_of(broker.url).llen("a-queue") == 1
        assert app.AsyncResult("a-task-id").get(timeout=5) == "a result"
        app.close()


def test_the_password_is_required_and_differs_each_time() -> None:
    with EmbeddedBroker(port=free_port()) as broker:
        assert broker.tcp_url is not None
        password = urlsplit(broker.url).password
        assert password
        for url in (broker.url, broker.tcp_url):
            with pytest.raises(AuthenticationError):
                client_of(url.replace(f":{password}@", "")).ping()
            with pytest.raises(AuthenticationError):
                client_of(url.replace(password, "wrong")).ping()
    assert password not in EmbeddedBroker().url


def test_it_listens_on_no_tcp_port_unless_one_is_given() -> None:
    with EmbeddedBroker() as broker:
        assert broker.tcp_url is None
        assert client_of(broker.url).config_get("port") == {"port": "0"}


def test_only_this_user_can_read_what_it_writes(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "by the broker"
    with EmbeddedBroker(directory) as broker:
        client_of(broker.url).set("a", "prompt")
        private_folder = socket_of(broker.url).parent
        found = [private_folder, *private_folder.rglob("*"), directory, *directory.rglob("*")]
        assert len(found) >= 8
        for path in found:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_data_in_a_directory_survives_a_killed_server_and_a_stopped_one(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    client_of(broker.url).set("written", "before the kill")
    assert broker.process_id is not None
    os.kill(broker.process_id, signal.SIGKILL)
    wait_until(lambda: not socket_of(broker.url).exists(), "the watchdog has noticed")
    broker.stop()

    broker.start()
    client = client_of(broker.url)
    assert client.get("written") == b"before the kill"
    client.set("written", "before the stop")
    broker.stop()

    with EmbeddedBroker(tmp_path) as another:
        assert another.url != broker.url
        assert client_of(another.url).get("written") == b"before the stop"


def test_without_a_directory_data_goes_with_the_server() -> None:
    broker = EmbeddedBroker()
    for _ in range(2):
        with broker:
            client = client_of(broker.url)
            assert client.dbsize() == 0
            client.set("a", "value")


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_server_outlives_its_killed_owner(tmp_path: Path, signal_number: signal.Signals) -> None:
    with an_owner(tmp_path) as (owner, process_id, url):
        client_of(url).set("written", "in time")
        owner.send_signal(signal_number)
        owner.wait(timeout=10)
        assert_nothing_is_left(process_id, url)
    with EmbeddedBroker(tmp_path) as broker:
        assert client_of(broker.url).get("written") == b"in time"


def test_no_server_outlives_an_owner_that_just_exits(tmp_path: Path) -> None:
    with an_owner(tmp_path, then="") as (owner, process_id, url):
        assert owner.wait(timeout=10) == 0
        assert_nothing_is_left(process_id, url)


def test_a_forked_child_of_the_owner_does_not_keep_the_server_alive(tmp_path: Path) -> None:
    forked = "child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(600)"
    with an_owner(tmp_path, then=forked) as (owner, process_id, url):
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        try:
            owner.kill()
            assert_nothing_is_left(process_id, url)
            assert runs(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_server_does_not_end_with_the_thread_that_started_it(tmp_path: Path) -> None:
    in_a_thread = "thread = threading.Thread(target=broker.start); thread.start(); thread.join()"
    with an_owner(tmp_path, start=in_a_thread) as (_, process_id, url):
        time.sleep(1)
        assert runs(process_id)
        assert client_of(url).ping()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_no_server_outlives_an_owner_and_a_watchdog_that_are_killed_together(tmp_path: Path) -> None:
    with an_owner(tmp_path) as (owner, process_id, url):
        watchdog = parent_of(process_id)
        assert parent_of(watchdog) == owner.pid
        os.kill(watchdog, signal.SIGKILL)
        owner.kill()
        wait_until(lambda: not runs(process_id), "the server has ended")
        shutil.rmtree(socket_of(url).parent)  # nobody was left to do it


def test_a_terminated_watchdog_takes_the_server_and_its_files_with_it() -> None:
    with EmbeddedBroker() as broker:
        assert broker.process_id is not None
        os.kill(parent_of(broker.process_id), signal.SIGTERM)
        assert_nothing_is_left(broker.process_id, broker.url)


def test_two_brokers_at_once_know_nothing_of_each_other() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as another:
        client_of(one.url).set("a", "value")
        assert client_of(another.url).get("a") is None


def test_a_directory_is_for_one_broker_at_a_time(tmp_path: Path) -> None:
    with an_owner(tmp_path) as (_, process_id, url):
        with pytest.raises(BrokerUnavailableError, match="in use by another embedded broker: stop that one"):
            EmbeddedBroker(tmp_path).start()
        assert runs(process_id)
        assert client_of(url).ping()


def test_a_broker_waits_for_the_last_one_of_its_directory_to_end(tmp_path: Path) -> None:
    first = EmbeddedBroker(tmp_path)
    first.start()
    ending = threading.Timer(0.5, first.stop)
    ending.start()
    with EmbeddedBroker(tmp_path) as second:
        assert client_of(second.url).ping()
    ending.join()


def test_a_started_broker_can_not_be_started_again() -> None:
    with EmbeddedBroker() as broker, pytest.raises(RuntimeError, match=r"stop\(\) it first"):
        broker.start()
    broker.stop()


def test_a_taken_port_is_named() -> None:
    with EmbeddedBroker(port=free_port()) as first:
        assert first.tcp_url is not None
        port = urlsplit(first.tcp_url).port
        second = EmbeddedBroker(port=port)
        with pytest.raises(BrokerUnavailableError, match=f"is port {port} taken"):
            second.start()
        assert not socket_of(second.url).parent.exists()


def test_maxmemory_refuses_writes_and_evicts_nothing() -> None:
    with EmbeddedBroker(maxmemory=3_000_000) as broker:
        client = client_of(broker.url)
        client.set("first", "kept")
        with pytest.raises(OutOfMemoryError):  # noqa: PT012 - which of the writes is one too many varies
            for number in range(100):
                client.set(str(number), b"x" * 100_000)
        assert client.get("first") == b"kept"


def test_damaged_data_is_reported_in_the_servers_own_words(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(BrokerUnavailableError, match=r"did not start: .*AOF manifest"):
        EmbeddedBroker(tmp_path).start()


def test_a_directory_with_quotes_and_spaces_in_its_name_works(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / ('it\'s "odd" \\ ünd long ' * 6)) as broker:
        assert client_of(broker.url).ping()


def test_a_directory_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettingError, match=r"can't use directory '.*file/data': Not a directory"):
        EmbeddedBroker(tmp_path / "file" / "data").start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"appendfsync": "sometimes"}, "appendfsync: 'sometimes' is not one of"),
        ({"port": 0}, "port: 0 is not a TCP port"),
        ({"maxmemory": 0}, "maxmemory: 0 is not a number of bytes"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        EmbeddedBroker(**settings)


def test_a_missing_server_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="no-server' is not a program that can be run"):
        EmbeddedBroker(server=tmp_path / "no-server").start()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InvalidSettingError, match=r"pip install 'promptmill\[embedded\]'"):
        EmbeddedBroker().start()


def test_a_long_temporary_folder_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with EmbeddedBroker() as broker:
        assert client_of(broker.url).ping()


def test_the_test_brokers_are_empty_and_real(any_broker_url: str) -> None:
    client = client_of(any_broker_url)
    assert client.dbsize() == 0
    assert client.set("a", "value")


def test_a_stopped_broker_refuses_connections() -> None:
    with EmbeddedBroker(port=free_port()) as broker:
        assert broker.tcp_url is not None
        client = client_of(broker.tcp_url)
        assert client.ping()
    with pytest.raises(RedisConnectionError):
        client.ping()
