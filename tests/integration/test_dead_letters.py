"""Dead letters as the ledger writes them: listed, shown, replayed and purged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import client_of, free_port
from command_line import assert_one_sentence, promptmill
from workers import a_worker

from promptmill import Client, InvalidRequestError, QueueFullError, ResultNotFoundError, TaskStatus
from promptmill.dead_letters import PAGE_LETTERS, DeadLetter, DeadLetters
from promptmill.settings import ClientSettings

STREAM = "promptmill:dead_letters"
TASK_ID = "5f0c7a1e5f5d4c3c8a54f6a7c1b2d3e4"
HISTORY = [
    {"worker": "one", "at": 1760000000.25, "alone": False, "why": "its lease ran out"},
    {"worker": "two", "at": 1760000009.5, "alone": True, "why": "its engine died"},
]


def write(broker_url: str, task: str = TASK_ID, prompt: str = "secret words", **fields: Any) -> None:
    """Writes a dead letter as the ledger's scripts do."""
    letter = {
        "task": task,
        "queue": "promptmill.echo",
        "priority": 6,
        "version": 1,
        "request": json.dumps({"prompt": prompt, "sampling": {"max_tokens": 2}}),
        "timeout_ms": 60_000,
        "ttl": 120,
        "reason": "2 workers were lost while they had it",
        "history": json.dumps(HISTORY),
    }
    with client_of(broker_url) as client:
        client.xadd(STREAM, letter | fields)


def tasks_left(broker_url: str) -> list[str]:
    with client_of(broker_url) as client:
        return [fields[b"task"].decode() for _, fields in client.xrange(STREAM)]


def queued(broker_url: str, priority: int) -> int:
    """How many messages one of the queue's lists holds."""
    with client_of(broker_url) as client:
        return client.llen("promptmill.echo" + (f"\x06\x16{priority}" if priority else ""))


@pytest.fixture
def letters(any_broker_url: str) -> Iterator[DeadLetters]:
    with DeadLetters(ClientSettings.read({}, broker_url=any_broker_url)) as opened:
        yield opened


def dead_letter(broker_url: str, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return promptmill("dead-letter", *arguments, broker=broker_url, **options)


def test_a_replayed_letter_is_answered_under_a_new_id_and_is_a_letter_no_more(
    any_broker_url: str, tmp_path: Path
) -> None:
    write(any_broker_url, prompt="one two three")
    replayed = dead_letter(any_broker_url, "replay", TASK_ID)
    assert (replayed.returncode, replayed.stderr) == (0, "")
    old, new = replayed.stdout.split()
    assert old == TASK_ID != new
    assert tasks_left(any_broker_url) == []
    with a_worker(any_broker_url, tmp_path / "log"), Client(any_broker_url) as client:
        result = client.task(new).result(timeout_s=20)
        assert (result.text, result.attempts) == ("one two", 1)
        assert client.task(old).status() is TaskStatus.UNKNOWN
    with client_of(any_broker_url) as redis:
        assert 0 < redis.ttl(f"promptmill:answers:{new}") <= 120


@pytest.mark.parametrize(("written", "replayed"), [(0, 6), (3, 3), (6, 6), (9, 9)])
def test_a_replayed_letter_keeps_queue_and_priority_and_does_not_jump_the_queue(
    letters: DeadLetters, any_broker_url: str, written: int, replayed: int
) -> None:
    write(any_broker_url, priority=written)
    letters.replay(letters.find(TASK_ID))
    assert {priority: queued(any_broker_url, priority) for priority in (0, 3, 6, 9)} == {
        0: 0, 3: 0, 6: 0, 9: 0, replayed: 1,
    }  # fmt: skip


def test_a_replay_that_died_before_it_deleted_the_letter_can_be_repeated(
    letters: DeadLetters, any_broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    write(any_broker_url)
    letter = letters.find(TASK_ID)
    with monkeypatch.context() as patched:
        patched.setattr(letters, "purge", die)
        with pytest.raises(KeyboardInterrupt):
            letters.replay(letter)
    assert (tasks_left(any_broker_url), queued(any_broker_url, 6)) == ([TASK_ID], 1)
    assert letters.replay(letters.find(TASK_ID)) == letters.replay(letter)
    assert (tasks_left(any_broker_url), queued(any_broker_url, 6)) == ([], 1)


def test_two_letters_of_one_task_become_two_tasks(letters: DeadLetters, any_broker_url: str) -> None:
    write(any_broker_url)
    write(any_broker_url)
    assert len({letters.replay(letter) for letter in letters.newest()}) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "written in version 2 of the protocol, this promptmill reads version 1"),
        ({"request": '{"prompt": "secret", "sampling": {"heat": 1}}'}, "no request any more .*heat"),
        ({"request": '{"prompt": ["secret"]}'}, "no request any more .*prompt"),
    ],
)
def test_a_letter_that_can_not_be_replayed_says_why_and_stays(
    letters: DeadLetters, any_broker_url: str, fields: dict[str, Any], message: str
) -> None:
    write(any_broker_url, **fields)
    with pytest.raises(InvalidRequestError, match=message) as raised:
        letters.replay(letters.find(TASK_ID))
    assert "secret" not in str(raised.value)
    assert tasks_left(any_broker_url) == [TASK_ID]


def test_replaying_all_leaves_those_that_can_not_be_replayed_and_exits_one(broker_url: str) -> None:
    write(broker_url, task="first")
    write(broker_url, task="wrong", version=2)
    write(broker_url, task="last:3")
    replayed = dead_letter(broker_url, "replay", "--all")
    assert replayed.returncode == 1
    assert [line.split()[0] for line in replayed.stdout.splitlines()] == ["last:3", "first"]
    assert replayed.stderr.count("\n") == 1
    assert "task wrong" in replayed.stderr
    assert (tasks_left(broker_url), queued(broker_url, 6)) == (["wrong"], 2)


def test_letters_are_listed_newest_first_however_many_there_are(letters: DeadLetters, any_broker_url: str) -> None:
    tasks = [f"task-{number}" for number in range(2 * PAGE_LETTERS + 5)]
    for task in tasks:
        write(any_broker_url, task=task)
    newest = letters.newest()
    first = next(newest)
    write(any_broker_url, task="too late")
    assert [first.task, *(letter.task for letter in newest)] == tasks[::-1]
    assert [letter.task for letter in letters.newest(2)] == ["too late", tasks[-1]]
    assert letters.find("task-0").history[1].alone


def test_a_letter_that_can_not_be_read_is_left_out_with_a_warning(
    letters: DeadLetters, any_broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(any_broker_url, task="fine")
    for unreadable in ('"secret"', "secret, and no JSON"):
        write(any_broker_url, request=unreadable)
    assert [letter.task for letter in letters.newest()] == ["fine"]
    assert "can't be read (request)" in caplog.text
    assert "secret" not in caplog.text
    assert (letters.purge(), letters.count()) == (3, 0)


def test_a_letter_shows_no_prompt_in_its_repr(letters: DeadLetters, any_broker_url: str) -> None:
    write(any_broker_url)
    letter = letters.find(TASK_ID)
    assert isinstance(letter, DeadLetter)
    assert TASK_ID in repr(letter)
    assert "secret" not in repr(letter)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_list_shows_each_letter_and_no_prompt(broker_url: str, form: tuple[str, ...]) -> None:
    write(broker_url, task="[a]task")
    write(broker_url)
    listed = dead_letter(broker_url, "list", *form)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.index(TASK_ID) < listed.stdout.index("[a]task")
    assert "workers were lost" in listed.stdout
    assert "secret" not in listed.stdout
    if form:
        newest = json.loads(listed.stdout)[0]
        assert (newest["queue"], newest["priority"], newest["history"]) == ("promptmill.echo", 6, HISTORY)


def test_show_prints_reason_history_and_request(broker_url: str) -> None:
    write(broker_url, task=f"{TASK_ID}:7", prompt="sécret")
    shown = dead_letter(broker_url, "show", f"{TASK_ID}:7")
    assert (shown.returncode, shown.stderr) == (0, "")
    for part in ("for echo", "2 workers were lost", "two, alone with it: its engine died", '"prompt": "sécret"'):
        assert part in shown.stdout
    as_json = json.loads(dead_letter(broker_url, "show", f"{TASK_ID}:7", "--json").stdout)
    assert as_json["request"] == {"prompt": "sécret", "sampling": {"max_tokens": 2}}
    assert as_json["history"] == HISTORY


def test_purge_asks_unless_it_is_told_not_to(broker_url: str) -> None:
    for task in ("one", "two", "three"):
        write(broker_url, task=task)
    for answer in ("", "n\n"):
        refused = dead_letter(broker_url, "purge", "--all", text=answer)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Delete 3 dead letters?" in refused.stderr
        assert "nothing was deleted" in refused.stderr
    assert len(tasks_left(broker_url)) == 3
    assert dead_letter(broker_url, "purge", "one", "one", text="y\n").returncode == 0
    assert tasks_left(broker_url) == ["two", "three"]
    purged = dead_letter(broker_url, "purge", "--all", "--yes")
    assert (purged.returncode, purged.stdout, purged.stderr) == (0, "", "2 dead letters deleted\n")
    assert tasks_left(broker_url) == []
    assert dead_letter(broker_url, "list").stdout == "no dead letters\n"


def test_an_unknown_id_is_said_before_anything_is_done(letters: DeadLetters, broker_url: str) -> None:
    write(broker_url)
    for command in (("show", "nobody"), ("replay", TASK_ID, "nobody"), ("purge", "--yes", TASK_ID, "nobody")):
        assert_one_sentence(dead_letter(broker_url, *command), 1, "no dead letter of task nobody")
    assert tasks_left(broker_url) == [TASK_ID]
    with pytest.raises(ResultNotFoundError) as raised:
        letters.find("nobody")
    assert raised.value.task_id == "nobody"


@pytest.mark.parametrize("arguments", [("replay",), ("purge",), ("purge", TASK_ID, "--all"), ("bury",)])
def test_wrong_usage_exits_two(broker_url: str, arguments: tuple[str, ...]) -> None:
    refused = dead_letter(broker_url, *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Error: " in refused.stderr


def test_without_letters_nothing_is_wrong(broker_url: str) -> None:
    assert dead_letter(broker_url, "list", "--json").stdout == "[]\n"
    for command in (("list",), ("replay", "--all"), ("purge", "--all", "--yes")):
        assert dead_letter(broker_url, *command).returncode == 0


def test_a_broker_that_is_down_is_named(tmp_path: Path) -> None:
    port = free_port()
    refused = dead_letter(f"redis://:hidden@127.0.0.1:{port}/0", "list", PROMPTMILL_BROKER_TIMEOUT_S="0.1")
    assert_one_sentence(refused, 1, f"127.0.0.1:{port}")
    assert "hidden" not in refused.stderr


def test_a_letter_stays_when_its_queue_is_full(any_broker_url: str) -> None:
    write(any_broker_url)
    with Client(any_broker_url, model="echo") as client:
        client.submit("fills it")
    settings = ClientSettings.read({}, broker_url=any_broker_url, max_queued_prompts=1)
    with DeadLetters(settings) as letters:
        with pytest.raises(QueueFullError, match="limit of 1"):
            letters.replay(letters.find(TASK_ID))
        assert letters.count() == 1
