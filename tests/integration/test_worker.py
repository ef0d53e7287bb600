from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brokers import client_of, free_port
from celery import Celery
from workers import START_TIMEOUT_S, a_process, a_worker, wait_until

from promptmill import Client, TaskFailedError, TaskStatus
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names
from promptmill_worker.echo import FAULT_DIE

#: At 10 words a second: six seconds.
SIX_SECONDS = "word " * 60
#: And as long as a test needs.
LONG = "word " * 250
TIMED = ("--echo-tokens-per-s", "10")


def running(client: Client, name: str) -> int:
    return sum(worker.running for worker in client.fleet().workers if worker.name == name)


def test_a_killed_workers_prompts_and_calls_are_answered_by_another_in_time(broker_url: str, tmp_path: Path) -> None:
    app = Celery("foreign", broker=broker_url, backend=broker_url, set_as_current=False)
    with Client(broker_url, model="echo") as client:
        with a_worker(broker_url, tmp_path / "one", *TIMED, "--worker-name", "one") as one:
            tasks = [client.submit("word " * 300) for _ in range(6)]
            calls = [
                app.send_task("promptmill.generate", args=["word " * 300], queue="promptmill.echo") for _ in range(3)
            ]
            handles = [client.task(task.id) for task in (*tasks, *calls)]
            short = client.submit("word")
            assert short.result(timeout_s=15).attempts == 1
            wait_until(lambda: all(handle.status() is TaskStatus.RUNNING for handle in handles), "all run")
            with a_worker(broker_url, tmp_path / "two", "--worker-name", "two"):
                one.send(signal.SIGKILL)
                killed_at = time.monotonic()
                results = [task.result(timeout_s=40) for task in tasks]
                answers = [call.get(timeout=40) for call in calls]
                assert time.monotonic() - killed_at < 25  # a lease, a sweep, and what a busy machine adds
        assert {(result.worker, result.attempts) for result in results} == {("two", 2)}
        assert [(answer["id"], answer["attempts"]) for answer in answers] == [(call.id, 2) for call in calls]
        assert short.result().worker == "one"
    app.close()


def test_a_terminated_worker_leaves_its_prompts_to_another_and_exits_zero(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client:
        options = (*TIMED, "--worker-name", "one", "--grace-s", "0.5", "--max-in-flight", "8")
        with a_worker(broker_url, tmp_path / "one", *options) as one:
            tasks = [client.submit(LONG) for _ in range(30)]
            results = client.map([LONG] * 30, chunk_size=30)
            wait_until(lambda: sum(task.status() is TaskStatus.RUNNING for task in tasks) == 8, "eight run")
            one.send(signal.SIGTERM)
            with a_worker(broker_url, tmp_path / "two", "--worker-name", "two"):
                assert one.wait(20) == 0, one.log
                answered = [*results, *(task.result(timeout_s=30) for task in tasks)]
        assert {(result.worker, result.attempts, result.text) for result in answered} == {("two", 1, LONG.strip())}
        assert not running(client, "one")


def test_a_terminated_worker_finishes_what_it_can_within_its_grace(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client, a_worker(broker_url, tmp_path / "log", *TIMED) as worker:
        task = client.submit(SIX_SECONDS)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        worker.send(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert task.result(timeout_s=5).attempts == 1
        assert client.fleet().workers == ()


def test_a_second_ctrl_c_puts_back_what_still_runs(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client, a_worker(broker_url, tmp_path / "log", *TIMED) as worker:
        task = client.submit("word " * 300)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        worker.send(signal.SIGINT)
        wait_until(lambda: "Warm shutdown" in worker.log, "it knows of the first")
        worker.send(signal.SIGINT)
        worker.wait(15)
        assert task.status() is TaskStatus.QUEUED


def test_an_idle_worker_stops_at_once(broker_url: str, tmp_path: Path) -> None:
    with a_worker(broker_url, tmp_path / "log") as worker:
        worker.send(signal.SIGTERM)
        assert worker.wait(8) == 0


def test_a_worker_that_is_terminated_while_the_broker_is_away_ends(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(appendfsync="everysec") as broker,
        Client(broker.url, model="echo") as client,
        a_worker(broker.url, tmp_path / "log", *TIMED, "--grace-s", "1") as worker,
    ):
        task = client.submit("word " * 300)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        broker.stop()
        worker.send(signal.SIGTERM)
        worker.wait(30)


def test_the_model_is_loaded_before_the_first_task_is_taken(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client:
        task = client.submit("early")
        with a_worker(broker_url, tmp_path / "log") as worker:
            task.result(timeout_s=10)
        assert worker.log.index(" serves echo") < worker.log.index(" ready.")


def test_an_engine_that_dies_ends_the_worker_not_its_prompts(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client:
        with a_worker(broker_url, tmp_path / "one", *TIMED) as one:
            tasks = [client.submit("word " * 50) for _ in range(5)]
            wait_until(lambda: all(task.status() is TaskStatus.RUNNING for task in tasks), "all run")
            killer = client.submit(FAULT_DIE)
            assert one.wait(20) != 0
            killer.cancel()
        with a_worker(broker_url, tmp_path / "two"):
            assert {task.result(timeout_s=20).text for task in tasks} == {("word " * 50).strip()}


def test_the_only_served_model_needs_no_name(broker_url: str, tmp_path: Path) -> None:
    with a_worker(broker_url, tmp_path / "log"), Client(broker_url) as client:
        wait_until(lambda: client.fleet().workers, "the worker shows up")
        assert client.generate("unnamed").model == "echo"


def celery(broker_url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PROMPTMILL_BROKER_URL": broker_url, **environment},
    )


def test_celerys_own_commands_run_and_inspect_a_worker(broker_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "promptmill_worker", "worker", "--loglevel", "info"]
    environment = {"PROMPTMILL_BROKER_URL": broker_url, "PROMPTMILL_MODEL": "echo", "PROMPTMILL_ENGINE": "echo"}
    app = Celery("foreign", broker=broker_url, backend=broker_url, set_as_current=False)
    with a_process(command, tmp_path / "log", **environment, PROMPTMILL_ECHO_TOKENS_PER_S="10") as worker:
        worker.wait_until_ready()
        with Client(broker_url, model="echo") as client:
            task = client.submit(LONG)
            call = app.send_task("promptmill.generate", args=[LONG], queue="promptmill.echo")
            wait_until(lambda: task.status() is client.task(call.id).status() is TaskStatus.RUNNING, "both run")
            patience = ("--timeout", "20", "--destination", f"celery@{socket.gethostname()}")
            active = celery(broker_url, "-A", "promptmill", "inspect", "active", "--json", *patience)
            ping = celery(broker_url, "-A", "promptmill", "inspect", "ping", *patience)
            assert (ping.returncode, "pong" in ping.stdout) == (0, True), ping.stderr
            assert "promptmill.run" in active.stdout
            assert "word" not in active.stdout
            assert task.cancel()
            assert client.task(call.id).cancel()
            assert client.generate("word and word").text == "word and word"
        call = app.send_task("promptmill.generate", args=["word by word"], queue="promptmill.echo")
        assert call.get(timeout=20)["text"] == "word by word"
        worker.send(signal.SIGTERM)
        assert worker.wait(20) == 0
    app.close()


def test_no_log_holds_a_prompt_an_answer_or_the_password(
    broker_url: str, embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    program = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from celery import Celery
from promptmill import Client, PromptmillError
url = sys.argv[1]
def attempt(action):
    try:
        return action()
    except Exception as error:
        print("raised", type(error), error)
with Client(url, model="echo") as client:
    attempt(lambda: client.generate("secret-prompt one", stop=["secret-stop"]))
    attempt(lambda: client.generate(messages=[{"role": "user", "content": "secret-prompt"}]))
    attempt(lambda: client.generate(messages=[{"role": "secret-prompt", "content": "secret-prompt"}]))
    attempt(lambda: client.generate("secret-prompt " * 600))
    attempt(lambda: client.generate("secret-prompt", logprobs=1))
    attempt(lambda: client.generate("secret-prompt" * 100_000))
    attempt(lambda: client.generate("secret-prompt", stop="secret-stop" * 100))
    attempt(lambda: list(client.map(["secret-prompt"] * 5, on_error="yield")))
    print(client.settings, client.fleet())
app = Celery("foreign", broker=url, backend=url, set_as_current=False)
for keywords in ({}, {"temperature": 9}, {"stop": [""]}):
    call = app.send_task("promptmill.generate", kwargs={"prompt": "secret-prompt", **keywords}, queue="promptmill.echo")
    attempt(lambda: call.get(timeout=10))
app.send_task("promptmill.mistyped", kwargs={"prompt": "secret-prompt"}, queue="promptmill.echo")
app.send_task("promptmill.generate", kwargs={"prompt": "secret-prompt"}, queue="promptmill.echo", serializer="pickle")
call = app.send_task("promptmill.generate", kwargs={"prompt": "secret-prompt"}, queue="promptmill.echo")
attempt(lambda: call.get(timeout=10))
"""
    password = re.search(r"//:(.*)@", broker_url)
    assert password is not None
    with a_worker(broker_url, tmp_path / "log", "--log-level", "debug", "--max-model-len", "500") as worker:
        client = subprocess.run([sys.executable, "-c", program, broker_url], capture_output=True, text=True, timeout=60)
        worker.send(signal.SIGTERM)
        assert worker.wait(20) == 0
    assert client.returncode == 0, client.stderr
    assert "DEBUG" in worker.log
    for log in (worker.log, client.stdout, client.stderr):
        lines = [line for line in log.splitlines() if "secret-" in line or password[1] in line]
        assert not lines, lines[:3]


def test_a_record_of_another_version_is_refused_with_both_versions(broker_url: str, tmp_path: Path) -> None:
    with Client(broker_url, model="echo") as client:
        task = client.submit("from the future")
        client_of(broker_url).hset(Names("promptmill:").record(task.id), "version", 99)
        with a_worker(broker_url, tmp_path / "log"), pytest.raises(TaskFailedError, match=r"version 99 .* version 1"):
            task.result(timeout_s=10)


def test_a_worker_survives_the_loss_of_the_brokers_data_and_of_the_broker_itself(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "data", appendfsync="everysec")
    with broker, a_worker(broker.url, tmp_path / "log") as worker, Client(broker.url, model="echo") as client:
        client.generate("before")
        client_of(broker.url).flushall()
        assert client.submit("after a flush").result(timeout_s=15).text == "after a flush"
        broker.stop()
        time.sleep(1)
        broker.start()
        assert client.submit("after a restart").result(timeout_s=30).text == "after a restart"
        wait_until(lambda: client.fleet().workers, "it shows up again")
        assert "password" not in worker.log


def wrong(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "promptmill.cli", "worker", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ((), {}, "model is not set: give --model or PROMPTMILL_MODEL"),
        (("--model", "m", "--max-in-flight", "0"), {}, "max_in_flight: '0' is not allowed"),
        (("--model", "m", "--lease-s", "soon"), {}, "lease_s: 'soon' is not allowed"),
        (("--model", "m", "--lease-s", "1", "--beat-s", "5"), {}, "a lease (lease_s: 1) must outlive a missed beat"),
        (("--model", "m", "--lease-s", "3"), {}, "beat_s: 2.0 is not allowed: a lease (lease_s: 3)"),
        (("--model", "m"), {"PROMPTMILL_BEAT_S": "-1"}, "PROMPTMILL_BEAT_S: '-1' is not allowed"),
        (("--model", "m"), {"PROMPTMILL_BROKER_URL": "http://:hidden@h"}, "PROMPTMILL_BROKER_URL: a broker URL begins"),
        (("--model", "m", "--engine", "magic"), {}, "engine: 'magic' is not allowed"),
    ],
)
def test_a_bad_setting_stops_the_worker_with_a_sentence(
    options: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    refused = wrong(*options, **environment)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "hidden" not in refused.stderr


def test_a_model_that_can_not_be_loaded_is_named_with_what_to_check(broker_url: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-model")
    refused = wrong("--model", missing, PROMPTMILL_BROKER_URL=broker_url, HF_HUB_OFFLINE="1")
    assert refused.returncode == 1
    assert missing in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_worker_waits_for_a_broker_that_is_not_there_yet(tmp_path: Path) -> None:
    broker = EmbeddedBroker(port=free_port(), appendfsync="everysec")
    assert broker.tcp_url is not None
    with a_worker(broker.tcp_url, tmp_path / "log", ready=False) as worker:
        wait_until(lambda: "Cannot connect" in worker.log, "it says what it waits for", START_TIMEOUT_S)
        with broker:
            worker.wait_until_ready()
            with Client(broker.tcp_url, model="echo") as client:
                assert client.generate("late broker").text == "late broker"


def test_a_worker_that_is_terminated_while_it_starts_ends_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_broker:
        url = f"redis://127.0.0.1:{silent_broker.getsockname()[1]}/0"
        # Accepted, and kept: it waits for an answer now, for some seconds.
        with a_worker(url, tmp_path / "log", ready=False) as worker, silent_broker.accept()[0]:
            worker.send(signal.SIGTERM)
            assert worker.wait(20) == 128 + signal.SIGTERM
        assert "serves" not in worker.log
