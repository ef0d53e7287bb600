"""``promptmill monitor``: who gets in, what it keeps, and what its pages say of queues and workers."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from acl_rules import rules_of
from brokers import client_of, free_port
from command_line import assert_one_sentence, promptmill
from monitors import LOGIN, MonitorProcess, a_monitor
from workers import a_worker, wait_until

from promptmill import Client
from promptmill.blocking import BlockingTransport, run
from promptmill.embedded import EmbeddedBroker
from promptmill.history import add_point
from promptmill.names import Names
from promptmill.queue_control import QueueControl
from promptmill.settings import ClientSettings, Settings

#: Nobody listens there: what is refused is refused before anybody is asked.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo") as client:
        yield client


def lengths(monitor: MonitorProcess) -> dict[str, int]:
    return {queue["name"]: queue["messages"] for queue in monitor.json("/api/queues/length")["active_queues"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen-host", "0.0.0.0"), "set password_file or oauth_provider"),
        (("--listen-host", "::"), "set password_file or oauth_provider"),
        (("--listen-host", "gpu-queue"), "set password_file or oauth_provider"),
        (("--oauth-provider", "google"), "oauth_emails, oauth_key, oauth_secret, oauth_redirect_uri not: set all"),
        (("--oauth-provider", "myspace"), "'myspace' is not allowed"),
        (("--password-file", "missing"), "'missing' is not allowed"),
        (("--https-cert-file", __file__), "https_cert_file and https_key_file go together"),
        (("--listen-port", "0"), "listen_port: '0' is not allowed"),
    ],
)
def test_what_would_let_others_in_or_is_half_set_is_refused(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    refused = promptmill("monitor", "--state-dir", tmp_path / "state", *options, broker=NOWHERE)
    assert_one_sentence(refused, 2, said)


@pytest.mark.parametrize("emails", [".*", "a@*", "*@b", ".*@.*"])
def test_a_pattern_that_lets_everybody_in_is_refused(tmp_path: Path, emails: str) -> None:
    refused = promptmill(
        "monitor", "--oauth-provider", "github", "--oauth-emails", emails, broker=NOWHERE,
        PROMPTMILL_STATE_DIR=str(tmp_path), PROMPTMILL_OAUTH_KEY="key", PROMPTMILL_OAUTH_SECRET="hidden-secret",
        PROMPTMILL_OAUTH_REDIRECT_URI="http://localhost/login",
    )  # fmt: skip
    assert_one_sentence(refused, 2, "oauth_emails")
    assert "hidden-secret" not in refused.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("# nobody\n\n", "is empty"),
        ("a:b\nhidden-password\n", "line 2"),
        ("a:hidden-pässword", "ASCII"),
    ],
)
def test_a_password_file_that_means_nothing_is_refused_and_not_quoted(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "logins").write_text(content)
    options = ("--password-file", tmp_path / "logins", "--state-dir", tmp_path / "state")
    refused = promptmill("monitor", *options, broker=NOWHERE)
    assert_one_sentence(refused, 2, said)
    assert "hidden" not in refused.stderr


def test_two_monitors_do_not_share_a_folder_or_a_port(broker_url: str, tmp_path: Path) -> None:
    with a_monitor(broker_url, tmp_path) as first:
        port = ("--listen-port", str(free_port()))
        refused = promptmill("monitor", *port, "--state-dir", tmp_path / "state", broker=broker_url)
        assert_one_sentence(refused, 2, "in use by another monitor")
        port = ("--listen-port", str(first.port))
        refused = promptmill("monitor", *port, "--state-dir", tmp_path / "other", broker=broker_url)
        assert_one_sentence(refused, 2, f"can't listen at 127.0.0.1, port {first.port}")


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    refused = promptmill("monitor", "--state-dir", tmp_path / "state", broker=NOWHERE)
    assert_one_sentence(refused, 2, "others can write to it")


def test_with_oauth_one_is_sent_to_the_provider(broker_url: str, tmp_path: Path) -> None:
    oauth = {
        "PROMPTMILL_OAUTH_PROVIDER": "github",
        "PROMPTMILL_OAUTH_EMAILS": ".*@example.com",
        "PROMPTMILL_OAUTH_KEY": "an-application",
        "PROMPTMILL_OAUTH_SECRET": "hidden-secret",
        "PROMPTMILL_OAUTH_REDIRECT_URI": "http://localhost/login",
    }
    with a_monitor(broker_url, tmp_path, login=None, **oauth) as monitor:
        for path in ("/", "/fleet", "/fleet/data", "/broker", "/metrics", "/api/tasks", "/api/queues/length"):
            status, text, headers = monitor.ask(path)
            assert (status, text) == (302, ""), path
            assert headers["Location"].startswith("/login?next=")
        status, text, headers = monitor.ask("/login")
        assert status == 302
        assert headers["Location"].startswith("https://github.com/login/oauth/authorize?")
        assert "an-application" in headers["Location"]
        assert monitor.ask("/api/task/revoke/a", "POST", body=b"")[0] == 403
        assert "hidden-secret" not in text + str(headers) + monitor.process.log


def test_an_open_monitor_shows_all_and_changes_nothing(broker_url: str, tmp_path: Path) -> None:
    with a_worker(broker_url, tmp_path / "log"), a_monitor(broker_url, tmp_path, login=None) as monitor:
        assert monitor.json("/fleet/data")["fleet"]["workers"]
        wait_until(lambda: "promptmill.echo" in monitor.ask("/broker")[1], "the queue is shown")
        for path in ("/api/task/revoke/a", "/api/worker/shutdown/a", "/api/tasks"):
            assert monitor.ask(path, "POST", body=b"")[0] in (401, 405), path


def test_below_a_prefix_all_links_lead_there(broker_url: str, tmp_path: Path) -> None:
    with a_monitor(broker_url, tmp_path, "--url-prefix", "/llm/") as monitor:
        assert monitor.ask("/fleet")[0] == 404
        status, text, _ = monitor.ask("/llm/fleet")
        assert status == 200
        for link in ("/llm/tasks", "/llm/fleet/data", "/llm/fleet/static/fleet.js", "/llm/static/js/flower.js"):
            assert f'"{link}' in text, text
            assert monitor.ask(link)[0] == 200, link
        assert monitor.ask("/llm/metrics", login=None)[0] == 401


def test_a_queue_is_counted_over_its_priorities_and_without_a_worker(
    broker_url: str, client: Client, tmp_path: Path
) -> None:
    with a_monitor(broker_url, tmp_path) as monitor:
        for priority in ("high", "normal", "normal", "low"):
            client.submit("waits", priority=priority)
        assert lengths(monitor) == {"promptmill.echo": 4}
        [model] = monitor.json("/fleet/data")["fleet"]["models"]
        assert (model["queued"], model["workers"]) == (4, 0)
        with a_worker(broker_url, tmp_path / "log"):
            wait_until(lambda: lengths(monitor) == {"promptmill.echo": 0, "promptmill.echo:again": 0}, "worked off")


def test_a_workers_page_has_its_card_also_while_it_is_busy(broker_url: str, client: Client, tmp_path: Path) -> None:
    slow = ("--echo-tokens-per-s", "20", "--max-batch", "2", "--worker-name", "gpu-one")
    with a_worker(broker_url, tmp_path / "log", *slow), a_monitor(broker_url, tmp_path) as monitor:
        tasks = [client.submit("word " * 300) for _ in range(6)]
        wait_until(lambda: monitor.tasks("STARTED"), "the monitor sees what runs")
        [worker] = monitor.workers()
        wait_until(lambda: monitor.json("/fleet/data")["pages"], "the monitor has met the worker")
        [page] = monitor.json("/fleet/data")["pages"].values()
        text = monitor.ask(page)[1]
        for shown in ("gpu-one", "served name", "up to 2 requests", "1,000,000 tokens"):
            assert shown in text
        assert monitor.workers() == [worker]
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_seen_is_there_after_a_restart(
    broker_url: str, client: Client, tmp_path: Path, number: signal.Signals
) -> None:
    with a_worker(broker_url, tmp_path / "log"):
        with a_monitor(broker_url, tmp_path) as monitor:
            wait_until(monitor.workers, "the monitor knows the worker")
            client.generate("hello")
            wait_until(lambda: monitor.tasks("SUCCESS"), "the monitor knows the task")
            seen = monitor.json("/api/tasks")
            database = tmp_path / "state" / "flower"
            [task] = seen
            if number is signal.SIGKILL:
                wait_until(lambda: any(task.encode() in file.read_bytes() for file in saved(database)), "saved")
            monitor.process.send(number)
            code = monitor.process.wait(20)
            assert number is signal.SIGKILL or code == 0, monitor.process.log
        with a_monitor(broker_url, tmp_path) as monitor:
            assert monitor.json("/api/tasks") == seen
            assert "Traceback" not in monitor.process.log


def saved(database: Path) -> list[Path]:
    return [file for file in database.parent.glob("flower*") if not file.name.startswith("flower.tmp")]


def test_dead_letters_are_listed_without_their_prompts(broker_url: str, tmp_path: Path) -> None:
    letter = {"task": "a-task", "queue": "promptmill.echo", "priority": 6, "version": 1, "timeout_ms": 1, "ttl": 1}
    lost = [{"worker": "one", "at": 1.5, "alone": True, "why": "its lease expired"}]
    text = {"request": '{"prompt": "hidden-prompt"}', "reason": "it killed 3 workers", "history": json.dumps(lost)}
    with a_monitor(broker_url, tmp_path) as monitor, client_of(broker_url) as redis:
        assert monitor.json("/fleet/data")["dead_letters"] == {"count": 0, "newest": []}
        redis.xadd("promptmill:dead_letters", {**letter, **text})
        shown = monitor.json("/fleet/data")["dead_letters"]
        assert shown["count"] == 1
        assert {name: shown["newest"][0][name] for name in ("task", "model", "reason", "workers")} == {
            "task": "a-task",
            "model": "echo",
            "reason": "it killed 3 workers",
            "workers": ["one"],
        }
        assert "hidden" not in json.dumps(shown)


def test_the_fleet_says_so_where_the_broker_is_away_or_a_queue_is_paused(
    broker_url: str, client: Client, tmp_path: Path
) -> None:
    with a_monitor(broker_url, tmp_path / "one") as monitor:
        client.submit("waits")
        with QueueControl(ClientSettings.read({}, broker_url=broker_url)) as control:
            control.pause("echo")
        [model] = monitor.json("/fleet/data")["fleet"]["models"]
        assert (model["name"], model["paused"]) == ("echo", True)
    with a_monitor(NOWHERE, tmp_path / "two", PROMPTMILL_BROKER_TIMEOUT_S="0.5") as monitor:
        status, text, _ = monitor.ask("/fleet/data")
        assert status == 503
        assert "127.0.0.1:1" in json.loads(text)["error"]
        assert monitor.ask("/fleet", login=LOGIN)[0] == 200


def test_the_last_hour_is_told_by_model(broker_url: str, client: Client, tmp_path: Path) -> None:
    client.submit("waits")
    settings = Settings.read({}, broker_url=broker_url)
    with a_monitor(broker_url, tmp_path) as monitor:
        assert monitor.json("/fleet/history") == {"times": [], "models": {}}
        assert run(add_point(BlockingTransport.open(settings, 5), Names(settings.key_prefix)))
        wait_until(lambda: monitor.json("/fleet/history")["times"], "the point is there")
        assert monitor.json("/fleet/history")["models"] == {"echo": {"tokens_per_s": [0.0], "queued": [1]}}


def test_the_fleets_metrics_have_a_port_of_their_own(broker_url: str, client: Client, tmp_path: Path) -> None:
    port = free_port()
    client.submit("waits")
    with (
        a_monitor(broker_url, tmp_path, "--metrics-port", str(port)),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page,
    ):
        text = page.read().decode()
    assert 'promptmill_unfinished_requests{model_name="echo"} 1.0' in text
    assert "flower_" not in text


def test_the_access_rules_of_the_docs_are_enough(broker_url: str, client: Client, tmp_path: Path) -> None:
    with client_of(broker_url) as admin:
        admin.acl_log_reset()
        rules = [*rules_of("promptmill"), "~celeryev.*", "+xlen"]
        admin.execute_command("ACL", "SETUSER", "monitor", "reset", "on", ">a-password", *rules)
        url = re.sub("//[^@]*@", "//monitor:a-password@", broker_url)
        with a_worker(broker_url, tmp_path / "log"), a_monitor(url, tmp_path) as monitor:
            wait_until(lambda: monitor.json("/fleet/data")["pages"], "the monitor has met the worker")
            client.generate("hello")
            wait_until(lambda: monitor.tasks("SUCCESS"), "it sees the task")
            [worker] = monitor.json("/fleet/data")["pages"].values()
            for path in ("/fleet/history", "/broker", worker):
                assert monitor.ask(path)[0] == 200
            assert "a-password" not in monitor.ask(worker)[1] + monitor.ask("/broker")[1] + monitor.process.log
        assert {entry["object"] for entry in admin.acl_log(count=100)} <= {"client|setinfo"}


def test_a_broker_that_goes_and_comes_back_is_looked_at_again(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(tmp_path / "data") as broker,
        a_worker(broker.url, tmp_path / "log"),
        a_monitor(broker.url, tmp_path / "monitor") as monitor,
        Client(broker.url, model="echo") as client,
    ):
        wait_until(monitor.workers, "the monitor knows the worker")
        client.generate("before")
        wait_until(lambda: len(monitor.tasks("SUCCESS")) == 1, "it sees the task")
        broker.stop()
        wait_until(lambda: "no events from the broker" in monitor.process.log, "the monitor notices")
        assert monitor.ask("/fleet/data")[0] == monitor.ask("/fleet/history")[0] == 503
        assert monitor.ask("/api/queues/length")[0] == 503
        assert "No queue data is available" in monitor.ask("/broker")[1]
        assert [monitor.ask(path)[0] for path in ("/", "/tasks", "/fleet", "/healthcheck")] == [200] * 4
        broker.start()
        client.generate("after")
        wait_until(lambda: len(monitor.tasks("SUCCESS")) == 2, "it sees the next task", 30)
        wait_until(lambda: monitor.ask("/fleet/data")[0] == 200, "the fleet is there again")
        assert "Traceback" not in monitor.process.log
