from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import free_port
from command_line import assert_one_sentence, promptmill
from workers import WorkerProcess, a_worker, wait_until

from promptmill import Client, Delta, TaskStatus
from promptmill.cli.generate import _print
from promptmill.embedded import EmbeddedBroker

TASK_ID = "00000000000000000000000000000000"


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at 100 words a second."""
    options = ("--echo-tokens-per-s", "100", "--worker-name", "the-worker")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", *options) as process:
        yield process


@pytest.fixture
def broker(worker: WorkerProcess, broker_url: str) -> str:
    """URL of a broker with a worker."""
    return broker_url


def test_generate_prints_the_text_and_nothing_else(broker: str) -> None:
    done = promptmill("generate", "one two three", "--max-tokens", "2", "--model", "echo", broker=broker)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")


def test_generate_reads_a_prompt_from_standard_input_and_takes_a_system_message(broker: str) -> None:
    done = promptmill(
        "generate", "-", "--system", "Be brief.", broker=broker, text="from a pipe", PROMPTMILL_MODEL="echo"
    )
    assert (done.returncode, done.stdout) == (0, "from a pipe\n")


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_generate_streams_on_a_terminal_unless_it_prints_json(broker: str, option: tuple[str, ...]) -> None:
    near, far = os.openpty()
    command = [sys.executable, "-m", "promptmill.cli", "generate", "word " * 150, "--model", "echo", *option]
    with subprocess.Popen(command, stdout=far, env={**os.environ, "PROMPTMILL_BROKER_URL": broker}) as process:
        os.close(far)
        reads = []
        with contextlib.suppress(OSError), os.fdopen(near, "rb", buffering=0) as terminal:  # EIO is its end
            while read := terminal.read(65536):
                reads.append(read)
    assert process.returncode == 0
    text = b"".join(reads).replace(b"\r\n", b"\n").decode()
    if option:
        assert json.loads(text)["choices"][0]["text"] == ("word " * 150).strip()
    else:
        assert text == ("word " * 150).strip() + "\n"
        assert len(reads) > 5


def test_a_text_that_begins_anew_is_printed_anew_and_it_is_said_why(capsys: pytest.CaptureFixture[str]) -> None:
    _print(iter([Delta("one "), Delta("two"), Delta("once", restarted=True), Delta(" more")]))
    assert capsys.readouterr() == ("one two\nonce more\n", "promptmill: a worker was lost, the text begins anew\n")


def test_generate_that_fails_in_mid_stream_says_so_on_a_line_of_its_own(broker: str) -> None:
    failed = promptmill(
        "generate", "word " * 3000, "--max-tokens", "3000", "--stream", "--timeout-s", "4", "--model", "echo",
        broker=broker,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stdout.startswith("word word")
    assert failed.stdout.endswith("word\n")
    assert failed.stderr.startswith("promptmill: the task's deadline passed")


def test_json_is_on_standard_output_and_alone_there(broker: str) -> None:
    done = promptmill("generate", "a", "--model", "echo", "--json", "--temperature", "0", broker=broker)
    assert json.loads(done.stdout)["choices"] == [{"index": 0, "text": "a", "finish_reason": "stop"}]
    assert done.stderr == ""


def test_generate_prints_the_texts_of_windows_in_order(broker: str) -> None:
    options = ("--model", "echo", "--window-tokens", "2", "--stride-tokens", "1", "--temperature", "0")
    assert promptmill("generate", "a b c", *options, broker=broker).stdout == "a b\nb c\n"


def test_generate_with_a_key_runs_once_however_often_it_is_typed(broker: str) -> None:
    options = ("--model", "echo", "--idempotency-key", "order 1234")
    once, again = (promptmill("generate", "a b", *options, "--json", broker=broker) for _ in range(2))
    assert json.loads(once.stdout)["choices"][0]["text"] == "a b"
    assert once.stdout == again.stdout
    assert promptmill("generate", "a b", *options, "--stream", broker=broker).stdout == "a b\n"
    assert_one_sentence(promptmill("generate", "another", *options, broker=broker), 2, "idempotency_key")


def test_a_prompt_that_fails_exits_one_and_a_wrong_one_two(broker: str) -> None:
    failed = promptmill("generate", "promptmill-fault:error", "--model", "echo", broker=broker)
    assert_one_sentence(failed, 1, "asked to fail")
    assert_one_sentence(promptmill("generate", "", "--model", "echo", broker=broker), 2, "the prompt is empty")
    assert_one_sentence(
        promptmill("generate", "a", "--temperature", "9", "--model", "echo", broker=broker), 2, "temperature", "≤ 2"
    )
    assert_one_sentence(promptmill("generate", "a", "--model", "no such", broker=broker), 2, "'no such'")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("generate",),
        ("generate", "a", "--no-such"),
        ("generate", "a", "--max-tokens", "x"),
        ("batch", "no-such-file", "--output", "o"),
    ],
)
def test_wrong_usage_exits_two_and_says_so_on_standard_error(arguments: tuple[str, ...]) -> None:
    refused = promptmill(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Error: " in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("generate", "a"), {}),
        (("status",), {"PROMPTMILL_BROKER_TIMEOUT_S": "0.1"}),
        (("status", "--json"), {"PROMPTMILL_BROKER_TIMEOUT_S": "0.1"}),
        (("task", TASK_ID), {"PROMPTMILL_BROKER_TIMEOUT_S": "0.1"}),
    ],
)
def test_a_broker_that_is_down_is_named_in_time(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    port = free_port()
    started_at = time.monotonic()
    failed = promptmill(*arguments, broker=f"redis://:hidden@127.0.0.1:{port}/0", **environment)
    assert time.monotonic() - started_at < 20  # with the start of Python
    assert_one_sentence(failed, 1, f"127.0.0.1:{port}")
    assert "hidden" not in failed.stderr


def test_the_command_line_wins_over_the_environment(broker: str) -> None:
    done = promptmill("generate", "a", "--model", "echo", broker=broker, PROMPTMILL_MODEL="nobody")
    assert done.stdout == "a\n"
    done = promptmill("generate", "a", "--broker-url", broker, broker="redis://nowhere", PROMPTMILL_MODEL="echo")
    assert done.stdout == "a\n"
    refused = promptmill("status", broker="nowhere")
    assert_one_sentence(refused, 2, "PROMPTMILL_BROKER_URL: a broker URL begins with")


def test_a_hub_id_in_the_environment_that_a_worker_shares_is_no_trouble(broker: str) -> None:
    assert promptmill("generate", "a", broker=broker, PROMPTMILL_MODEL="Some-Organisation/Echo").stdout == "a\n"
    assert promptmill("status", broker=broker, PROMPTMILL_MODEL="Some-Organisation/Echo").returncode == 0


def shown_worker(broker: str) -> None:
    with Client(broker) as client:
        wait_until(lambda: client.fleet().workers, "the worker has shown up again")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_status_shows_models_and_workers_without_escape_codes_in_a_pipe(
    broker: str, environment: dict[str, str]
) -> None:
    shown_worker(broker)
    shown = promptmill("status", broker=broker, **environment)
    assert shown.returncode == 0
    assert "echo" in shown.stdout
    assert "the-worker" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr


def test_status_as_json_is_the_fleet(broker: str) -> None:
    shown_worker(broker)
    fleet = json.loads(promptmill("status", "--json", broker=broker).stdout)
    assert fleet["workers"][0]["name"] == "the-worker"
    assert fleet["models"][0]["name"] == "echo"


def test_status_without_any_worker_is_no_error(broker_url: str) -> None:
    with EmbeddedBroker() as empty:
        shown = promptmill("status", broker=empty.url)
    assert (shown.returncode, shown.stdout) == (0, "no workers, and nothing is queued\n")


def test_task_shows_status_and_result_and_cancels(broker: str) -> None:
    with Client(broker, model="echo") as client:
        done, waiting = client.submit("an answer"), client.submit("never", model="nobody")
        done.result(timeout_s=10)
        assert promptmill("task", done.id, broker=broker).stdout == "succeeded\nan answer\n"
        shown = json.loads(promptmill("task", done.id, "--json", broker=broker).stdout)
        assert (shown["id"], shown["status"], shown["result"]["choices"][0]["text"]) == (
            done.id,
            "succeeded",
            "an answer",
        )
        assert promptmill("task", waiting.id, broker=broker).stdout == "queued\n"
        cancelled = promptmill("task", waiting.id, "--cancel", broker=broker)
        assert cancelled.stdout.startswith("cancelled\n")
        assert waiting.status() is TaskStatus.CANCELLED
        shown = json.loads(promptmill("task", waiting.id, "--json", broker=broker).stdout)
        assert shown["error"]["type"] == "TaskCancelledError"


def test_an_unknown_task_exits_one(broker: str) -> None:
    assert_one_sentence(promptmill("task", TASK_ID, broker=broker), 1, TASK_ID)


def test_batch_answers_line_by_line_and_reports_the_wrong_ones(broker: str, tmp_path: Path) -> None:
    lines = ['{"prompt": "a b c"}', "wrong", '{"prompt": "d e f", "max_tokens": 1}', '{"prompt": ""}']
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    done = promptmill(
        "batch", source, "--output", output, "--max-tokens", "2", "--model", "echo",
        "--simple", "--ordered", broker=broker)  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "in.jsonl:2: not a line of JSON" in done.stderr
    assert "in.jsonl:4: the prompt is empty" in done.stderr
    read = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line.get("text") for line in read] == ["a b", None, "d", None]
    assert [line["promptmill"]["line"] for line in read] == [1, 2, 3, 4]


def test_batch_exits_zero_where_all_went_well(broker: str, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"question": "ünï"}\n' * 100)
    arguments = ("--output", output, "--field", "question", "--chat", "--model", "echo", "--simple")
    done = promptmill("batch", source, *arguments, broker=broker)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^prompts +100 *\nanswered +100 *\nfailed +0 *$", done.stderr, re.MULTILINE)
    assert [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()] == ["ünï"] * 100


def test_batch_reads_a_pipe(broker: str, tmp_path: Path) -> None:
    arguments = ("/dev/stdin", "--output", tmp_path / "out.jsonl", "--model", "echo")
    done = promptmill("batch", *arguments, broker=broker, text='{"prompt": "a"}\n' * 10)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 10


def test_batch_does_not_write_over_its_input(broker: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    (tmp_path / "link").symlink_to(source)
    for output in (source, tmp_path / "link"):
        assert promptmill("batch", source, "--output", output, "--model", "echo", broker=broker).returncode == 2
        assert source.read_text() == '{"prompt": "a"}\n'


def test_batch_keeps_an_older_output_where_nothing_can_be_sent(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n')
    output.write_text("older answers\n")
    arguments = ("batch", source, "--output", output, "--model", "echo")
    nowhere = f"redis://127.0.0.1:{free_port()}"
    assert_one_sentence(promptmill(*arguments, broker=nowhere, PROMPTMILL_BROKER_TIMEOUT_S="0.1"), 1, "does not answer")
    assert output.read_text() == "older answers\n"


def test_batch_says_why_it_can_not_write(broker: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    output = tmp_path / "no-such-folder" / "out.jsonl"
    failed = promptmill("batch", source, "--output", output, "--model", "echo", broker=broker)
    assert_one_sentence(failed, 1, "no-such-folder", "No such file or directory")


def test_a_reader_that_goes_away_is_no_traceback(broker: str) -> None:
    shown = subprocess.run(
        f"{sys.executable} -m promptmill.cli status --json | true",
        shell=True, capture_output=True, text=True, timeout=30, env={**os.environ, "PROMPTMILL_BROKER_URL": broker},
    )  # fmt: skip
    assert "Traceback" not in shown.stderr
