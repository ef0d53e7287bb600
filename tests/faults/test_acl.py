"""The access rules of docs/security.md: they are enough, and no word of them is one too many."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from acl_rules import rules_of
from brokers import client_of
from workers import a_worker

from promptmill import BrokerUnavailableError, Client
from promptmill.access import CLIENT_COMMANDS, WORKER_COMMANDS, denied_commands
from promptmill.app import create_app
from promptmill.broker import connect
from promptmill.broker_errors import check_access
from promptmill.dead_letters import DeadLetters
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names
from promptmill.queue_control import QueueControl, Queued
from promptmill.settings import ClientSettings, Settings

PASSWORD = "hidden-password"
QUEUE = "promptmill.echo"


def set_user(url: str, user: str, rules: list[str]) -> str:
    """Makes a user; returns the URL with which he comes."""
    with client_of(url) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        admin.execute_command("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", *rules)
    return re.sub(r"//[^@]*@", f"//{user}:{PASSWORD}@", url)


def denied(url: str) -> list[object]:
    """What the broker has denied, without redis-py's way of introducing itself."""
    with client_of(url) as admin:
        entries = [entry["object"] for entry in admin.acl_log(count=100)]
        admin.execute_command("ACL", "LOG", "RESET")
    return [entry for entry in entries if entry != "client|setinfo"]


def test_the_rules_are_enough_for_a_worker_clients_plain_calls_and_inspect(any_broker_url: str, tmp_path: Path) -> None:
    url = set_user(any_broker_url, "promptmill", rules_of("promptmill"))
    with a_worker(url, tmp_path / "log") as worker, Client(url, model="echo") as client:
        assert client.generate("hello").text == "hello"
        app = create_app(Settings.read({}, broker_url=url))
        calls = [
            app.send_task("promptmill.generate", args=[str(number)], queue=QUEUE, ignore_result=False)
            for number in range(3)
        ]
        assert [call.get(timeout=20)["text"] for call in calls] == ["0", "1", "2"]
        app.close()
        command = [sys.executable, "-m", "celery", "-A", "promptmill", "inspect", "ping", "--timeout", "20"]
        command += ["--destination", worker.celery_name]
        environment = {**os.environ, "PROMPTMILL_BROKER_URL": url}
        ping = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert "pong" in ping.stdout, ping.stderr
        assert not re.search("NOPERM|NoPermission|ermission|Traceback", worker.log)
    assert denied(any_broker_url) == []


def test_smaller_rules_are_enough_for_a_client(any_broker_url: str, tmp_path: Path) -> None:
    worker_url = set_user(any_broker_url, "promptmill", rules_of("promptmill"))
    url = set_user(any_broker_url, "promptmill-client", rules_of("promptmill-client"))
    with a_worker(worker_url, tmp_path / "log", "--echo-tokens-per-s", "20"), Client(url) as client:
        assert [result.text for result in client.map(["a", "b"], chunk_size=1)] == ["a", "b"]
        assert len(list(client.stream("streamed " * 60))) > 2
        task = client.submit("word " * 200)
        assert task.cancel() is True
        assert len({client.submit("a", idempotency_key="k").id for _ in range(2)}) == 1
        assert client.task(task.id).status() == "cancelled"
        assert client.fleet().workers
    assert denied(any_broker_url) == []


def test_a_client_can_not_take_work_or_read_what_is_not_ours(broker_url: str) -> None:
    url = set_user(broker_url, "promptmill-client", rules_of("promptmill-client"))
    with client_of(url) as client:
        for command in (["BRPOP", QUEUE, "1"], ["GET", "other"], ["CONFIG", "GET", "*"], ["FLUSHALL"], ["KEYS", "*"]):
            with pytest.raises(Exception, match=r"(?i)no permissions"):
                client.execute_command(*command)


def test_a_client_may_run_every_command_of_the_ledgers_scripts() -> None:
    used = {
        name.lower()
        for script in (files("promptmill.ledger") / "lua").iterdir()
        if script.name != "clear.lua"  # only to purge a queue
        for name in re.findall(r"redis\.call\('([A-Z]+)'", script.read_text())
    }
    assert used <= {line.split()[0] for line in CLIENT_COMMANDS.strip().splitlines()}


LETTER = {
    "task": "old",
    "queue": QUEUE,
    "priority": 6,
    "version": 1,
    "request": '{"prompt": "a"}',
    "timeout_ms": 60_000,
    "ttl": 60,
    "reason": "it killed its workers",
    "history": '[{"worker": "one", "at": 1.5, "alone": true, "why": "its lease expired"}]',
}


def test_dead_letters_need_three_commands_more(broker_url: str) -> None:
    client_rules = rules_of("promptmill-client")
    more = ["+xlen", "+xrevrange", "+xdel"]
    settings = ClientSettings.read({}, broker_url=set_user(broker_url, "promptmill-client", [*client_rules, *more]))
    with client_of(broker_url) as redis, DeadLetters(settings) as letters:
        redis.xadd(Names("promptmill:").dead_letters, LETTER)
        assert letters.count() == 1
        assert letters.replay(letters.find("old"))
        assert letters.count() == 0
    assert denied(broker_url) == []


def test_a_queue_is_paused_by_a_client_and_purged_with_one_command_more(any_broker_url: str) -> None:
    client_rules = rules_of("promptmill-client")
    url = set_user(any_broker_url, "promptmill-client", client_rules)
    settings = ClientSettings.read({}, broker_url=url)
    with Client(url, model="echo") as client, QueueControl(settings) as control:
        task = client.submit("a")
        assert (control.pause("echo"), control.resume("echo")) == (True, True)
        with pytest.raises(BrokerUnavailableError, match=r"denies user 'promptmill-client' .*docs/security\.md"):
            control.purge("echo")
        assert task.status() == "cancelled"
    denied(any_broker_url)
    url = set_user(any_broker_url, "promptmill-client", [*client_rules, "+rpop"])
    with QueueControl(ClientSettings.read({}, broker_url=url)) as control:
        assert control.purge("echo") == Queued(0, 0)
    assert denied(any_broker_url) == []


RULES = {
    user: [(user, word) for word in rules_of(user) if word != "-@all"] for user in ("promptmill", "promptmill-client")
}


@pytest.mark.parametrize(("user", "word"), [*RULES["promptmill"], *RULES["promptmill-client"]])
def test_no_word_of_the_rules_is_one_too_many(any_broker_url: str, user: str, word: str) -> None:
    url = set_user(any_broker_url, user, [other for other in rules_of(user) if other != word])
    settings = Settings.read({}, broker_url=url)
    if user == "promptmill":
        with pytest.raises(BrokerUnavailableError, match=f"denies user '{user}' what promptmill needs"):
            check_access(settings, "echo")
    elif word not in ("+evalsha", "+script|load"):  # without them nothing can be asked
        with connect(settings) as client:
            assert denied_commands(client, CLIENT_COMMANDS, "promptmill:", "echo")


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("+hset", "hset promptmill:record:a"),
        ("+evalsha", "evalsha"),
        ("~promptmill.*", "lpush promptmill.any"),
        ("+lpush", "lpush promptmill.any"),
    ],
)
def test_a_client_with_too_few_rights_says_what_it_lacks(any_broker_url: str, missing: str, named: str) -> None:
    url = set_user(any_broker_url, "few", [word for word in rules_of("promptmill-client") if word != missing])
    with (
        Client(url, model="echo") as client,
        pytest.raises(BrokerUnavailableError, match=rf"denies user 'few' .*{named}.*docs/security\.md") as caught,
    ):
        client.generate("a secret prompt")
    assert PASSWORD not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("+brpop", "brpop promptmill.echo"),
        ("&/0.celery.pidbox", "psubscribe"),
        ("~promptmill:*", "get promptmill:clock"),
    ],
)
def test_a_worker_with_too_few_rights_says_what_it_lacks_and_ends(
    embedded_broker: EmbeddedBroker, tmp_path: Path, missing: str, named: str
) -> None:
    url = set_user(embedded_broker.url, "few", [word for word in rules_of("promptmill") if word != missing])
    with a_worker(url, tmp_path / "log", ready=False) as process:
        assert process.wait(60) == 1
        assert re.search(rf"^promptmill: the broker at .* denies user 'few' .*{named}", process.log, re.MULTILINE)
        assert "Traceback" not in process.log
        assert PASSWORD not in process.log


def test_nothing_is_denied_to_a_user_who_may_do_all(any_broker_url: str) -> None:
    with client_of(any_broker_url) as client:
        assert denied_commands(client, WORKER_COMMANDS, "promptmill:", "echo") == []
