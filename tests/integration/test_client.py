from __future__ import annotations

import gc
import logging
import multiprocessing
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from brokers import client_of
from workers import WorkerProcess, a_worker, wait_until

from promptmill import (
    Client,
    InvalidRequestError,
    PromptTooLongError,
    ResultNotFoundError,
    ResultTimeoutError,
    SamplingParams,
    Task,
    TaskCancelledError,
    TaskExpiredError,
    TaskStatus,
    replies,
)
from promptmill.embedded import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("each_client")

#: At the slow worker's 10 words a second this runs as long as any test.
LONG = "word " * 3000
#: And these for one second and for four.
SHORT = "word " * 10
FOUR_SECONDS = "word " * 40


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at once."""
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log", "--max-model-len", "5000") as process:
        yield process


@pytest.fixture(scope="module")
def slow_worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "slow" at 10 words a second, two prompts at once."""
    options = ("--served-name", "slow", "--echo-tokens-per-s", "10", "--max-in-flight", "2", "--beat-s", "0.5")
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("slow") / "log", *options) as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo") as client:
        yield client


@pytest.fixture
def slow(slow_worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="slow") as client:
        yield client


def test_generate_waits_for_the_answer_and_says_where_it_comes_from(client: Client) -> None:
    result = client.generate("one two three", max_tokens=2)
    assert (result.text, result.finish_reason) == ("one two", "length")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.total_tokens) == (3, 2, 5)
    assert (result.model, result.attempts, result.index) == ("echo", 1, 0)
    assert result.worker
    assert 0 < result.timings.queued_s < 60


def test_a_chat_is_answered(client: Client) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello you"}]
    assert client.generate(messages=chat, temperature=0.7, seed=7).text == "hello you"


def test_parameters_come_from_an_object_from_keywords_and_by_openais_name(client: Client) -> None:
    params = SamplingParams(max_tokens=3, stop="c")
    assert client.generate("a b c d", params=params).text == "a b "
    assert client.generate("a b c d", params=params, max_tokens=1).text == "a"
    assert client.generate("a b c d", params=params, max_completion_tokens=1).text == "a"


def test_n_gives_n_choices(client: Client) -> None:
    assert [choice.index for choice in client.generate("a", n=3).choices] == [0, 1, 2]


def test_windows_of_a_long_text_come_back_joined_in_order(client: Client) -> None:
    asked = {"window_tokens": 3, "stride_tokens": 2, "max_tokens": 2}
    for result in (client.generate("a b c d e", **asked), *client.map(["a b c d e"] * 2, **asked)):
        assert (result.text, result.finish_reason) == ("a b\nc d", "length")
        assert [(choice.index, choice.window) for choice in result.choices] == [(0, (0, 3)), (1, (2, 5))]
    params = SamplingParams(window_tokens=4)
    task = client.submit(messages=[{"role": "user", "content": "a b c d e"}], params=params)
    assert client.task(task.id).result(timeout_s=20).text == "a b c d\ne"
    with pytest.raises(PromptTooLongError, match=r"window 0 .* 5,000 tokens, at most 4,999"):
        client.generate("a " * 6000, window_tokens=5000)
    with pytest.raises(InvalidRequestError, match="stride_tokens 5 would skip text"):
        client.submit("a", window_tokens=4, stride_tokens=5)


def test_a_deadline_that_passes_among_windows_keeps_the_texts_so_far(slow: Client) -> None:
    with pytest.raises(TaskExpiredError) as caught:
        slow.submit("a " * 200, window_tokens=100, timeout_s=5).result(timeout_s=30)
    first, second = caught.value.partial_text.split("\n")
    assert first.split()[0] == second.split()[0] == "a"


def test_text_of_all_kinds_comes_back_as_it_was(client: Client) -> None:
    text = 'ünï "quoted" \\back 😀 \u2028 \x00 \x7f 漢字 @id@ %s %1 {} \ue000'
    assert client.generate(text).text == text.replace("\u2028 ", "")  # the echo engine splits at white space


def test_a_task_goes_from_queued_over_running_to_succeeded(slow: Client) -> None:
    others = [slow.submit(LONG) for _ in range(2)]
    task = slow.submit(FOUR_SECONDS)
    assert task.status() is TaskStatus.QUEUED
    for other in others:
        assert other.cancel()
    wait_until(lambda: task.status() is TaskStatus.RUNNING, "the task runs")
    result = task.result(timeout_s=20)
    assert (result.text, result.attempts) == (FOUR_SECONDS.strip(), 1)
    assert task.status() is TaskStatus.SUCCEEDED


def test_a_result_that_is_not_there_in_time_can_be_asked_for_again(slow: Client) -> None:
    task = slow.submit(FOUR_SECONDS)
    with pytest.raises(ResultTimeoutError, match=task.id) as caught:
        task.result(timeout_s=0.1)
    assert caught.value.task_id == task.id
    assert task.result(timeout_s=20).id == task.id


def test_another_process_reads_a_result_by_its_id(client: Client, broker_url: str) -> None:
    task = client.submit("told elsewhere")
    program = (
        f"from promptmill import Client\nwith Client({broker_url!r}) as c:\n print(c.task({task.id!r}).result(9).text)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout == "told elsewhere\n"


def test_another_client_waits_for_a_task_that_still_runs(slow: Client, broker_url: str) -> None:
    task = slow.submit(SHORT)
    with Client(broker_url) as other:
        assert other.task(task.id).result(timeout_s=20).text == SHORT.strip()


def test_a_result_can_be_read_again_and_again(client: Client) -> None:
    task = client.submit("again")
    assert [task.result(timeout_s=9).text, client.task(task.id).result(timeout_s=9).text] == ["again", "again"]


@pytest.mark.parametrize("task_id", ["no-such-task", "", "*", "a:1", "ünï", "x" * 10_000])
def test_an_unknown_task_is_said_to_be_unknown(client: Client, task_id: str) -> None:
    task = client.task(task_id)
    assert task.status() is TaskStatus.UNKNOWN
    assert task.cancel() is False
    with pytest.raises(ResultNotFoundError) as caught:
        task.result(timeout_s=9)
    assert caught.value.task_id == task_id


def test_a_place_that_its_record_does_not_have_can_not_be_cancelled(client: Client, slow: Client) -> None:
    task = slow.submit(SHORT)
    assert client.task(f"{task.id}:7").cancel() is False
    assert task.result(timeout_s=20).text == SHORT.strip()


def test_a_result_is_gone_after_its_time(client: Client, broker_url: str) -> None:
    with Client(broker_url, model="echo", result_ttl_s=1) as brief:
        task = brief.submit("soon gone")
        task.result(timeout_s=9)
    wait_until(lambda: client.task(task.id).status() is TaskStatus.UNKNOWN, "the result is gone")


def test_a_cancelled_task_ends_at_once_whether_it_waits_or_runs(slow: Client) -> None:
    running = slow.submit(LONG)
    other = slow.submit(LONG)
    wait_until(lambda: running.status() is other.status() is TaskStatus.RUNNING, "both run")
    waiting = slow.submit(LONG)
    for task in (waiting, running, other):
        assert task.cancel() is True
        assert task.cancel() is False
        assert task.status() is TaskStatus.CANCELLED
        with pytest.raises(TaskCancelledError, match=task.id):
            task.result(timeout_s=9)
    # The worker hears of it within a beat, and has room again.
    assert slow.generate("next", timeout_s=60).text == "next"


def test_an_answered_task_can_not_be_cancelled(client: Client) -> None:
    task = client.submit("done")
    task.result(timeout_s=9)
    assert task.cancel() is False
    assert task.result().text == "done"


def test_a_task_expires_in_the_queue(client: Client) -> None:
    task = client.submit("nobody's", model="nobody", timeout_s=0.3)
    with pytest.raises(TaskExpiredError, match="timeout_s"):
        task.result(timeout_s=15)
    assert task.status() is TaskStatus.EXPIRED


def test_a_task_expires_while_it_runs_and_gives_its_place_back(slow: Client) -> None:
    tasks = [slow.submit(LONG, timeout_s=1) for _ in range(2)]
    for task in tasks:
        with pytest.raises(TaskExpiredError):
            task.result(timeout_s=15)
    assert slow.generate("next", timeout_s=60).text == "next"


def test_high_goes_before_normal_before_low(slow: Client) -> None:
    blockers = [slow.submit(LONG) for _ in range(2)]
    wait_until(lambda: all(task.status() is TaskStatus.RUNNING for task in blockers), "the worker is busy")
    prompts = {"low": SHORT, "normal": FOUR_SECONDS, "high": FOUR_SECONDS}
    tasks = {name: slow.submit(prompt, priority=name) for name, prompt in prompts.items()}
    for blocker in blockers:
        assert blocker.cancel()
    queued = {name: task.result(timeout_s=30).timings.queued_s for name, task in tasks.items()}
    assert queued["high"] <= queued["normal"] + 0.2 < queued["low"]


def test_a_task_that_fails_raises_its_own_error_with_its_values_here_and_elsewhere(
    client: Client, broker_url: str
) -> None:
    task = client.submit("word " * 6000)
    for asked in (task, client.task(task.id)):
        with pytest.raises(PromptTooLongError) as caught:
            asked.result(timeout_s=9)
        assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (6000, 4999)
    assert task.status() is TaskStatus.FAILED


def test_log_probabilities_travel(client: Client) -> None:
    (choice,) = client.generate("a b", logprobs=5).choices
    assert [entry.token for entry in choice.logprobs or ()] == ["a", "b"]
    assert client.generate("a b").choices[0].logprobs is None


def test_sixteen_threads_share_a_client(client: Client) -> None:
    def converse(thread: int) -> list[str]:
        tasks = [client.submit(f"thread {thread} prompt {number}") for number in range(25)]
        return [task.result(timeout_s=60).text for task in tasks]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(converse, range(16)))
    assert answers == [[f"thread {thread} prompt {number}" for number in range(25)] for thread in range(16)]


def test_two_clients_get_their_own_answers(client: Client, broker_url: str) -> None:
    with Client(broker_url, model="echo") as other:
        mine = [client.submit(f"mine {number}") for number in range(50)]
        theirs = [other.submit(f"theirs {number}") for number in range(50)]
        assert [task.result(timeout_s=30).text for task in mine] == [f"mine {number}" for number in range(50)]
        assert [task.result(timeout_s=30).text for task in theirs] == [f"theirs {number}" for number in range(50)]


def test_a_dropped_handle_leaves_nothing_in_the_client_and_its_task_goes_on(client: Client) -> None:
    task = client.submit("goes on")
    task_id, submission = task.id, weakref.ref(task._core._submission)
    del task
    gc.collect()
    assert submission() is None
    assert len(client._session._replies._submissions) == 0
    assert client.task(task_id).result(timeout_s=9).text == "goes on"


@pytest.mark.threads
def test_a_client_that_is_dropped_without_closing_leaves_no_thread(worker: WorkerProcess, broker_url: str) -> None:
    client = Client(broker_url, model="echo")
    task = client.submit("still waited for")
    thread = client._session._replies._reading._thread
    assert thread is not None
    del client
    assert task.result(timeout_s=9).text == "still waited for"
    thread.join(1.5)
    assert thread.is_alive()
    del task
    thread.join(5)
    assert not thread.is_alive()


def test_the_reply_stream_is_trimmed_as_it_is_read_and_gone_when_the_client_is_closed(
    worker: WorkerProcess, broker_url: str
) -> None:
    broker = client_of(broker_url)
    with Client(broker_url, model="echo") as client:
        for task in [client.submit(f"{number}") for number in range(20)]:
            task.result(timeout_s=9)
        stream = client._session._replies.stream
        wait_until(lambda: broker.xlen(stream) == 0, "the stream is trimmed")
    assert not broker.exists(stream)


def test_closing_a_client_takes_no_second_even_while_it_waits(worker: WorkerProcess, broker_url: str) -> None:
    took_s = []
    for _ in range(5):
        client = Client(broker_url, model="echo")
        client.generate("a")
        started_at = time.monotonic()
        client.close()
        client.close()
        took_s.append(time.monotonic() - started_at)
    assert min(took_s) < 0.5  # others may have come upon a busy machine


def test_closing_a_client_ends_the_waiting_of_its_threads(slow: Client, slow_worker: WorkerProcess) -> None:
    with Client(slow.settings.broker_url, model="slow") as client, ThreadPoolExecutor(1) as pool:
        task = client.submit(FOUR_SECONDS)
        waiting = pool.submit(task.result)
        time.sleep(0.1)
        client.close()
        with pytest.raises(ResultTimeoutError, match="the client was closed"):
            waiting.result(timeout=5)
        with pytest.raises(RuntimeError, match="this client is closed"):
            client.submit("too late")
    assert slow.task(task.id).result(timeout_s=20).text == FOUR_SECONDS.strip()


def generate_in_child(client: Client, results: multiprocessing.Queue[str]) -> None:
    results.put(client.generate("from the child").text)


@pytest.mark.threads
def test_a_client_made_before_a_fork_works_in_the_parent_and_in_the_child(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "CHECK_AFTER_S", 600.0)  # answers come of themselves, not because they are overdue
    client.generate("its thread runs now")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    children = [context.Process(target=generate_in_child, args=(client, results)) for _ in range(2)]
    for child in children:
        child.start()
    try:
        parents = [client.submit(f"parent {number}") for number in range(20)]
        assert [task.result(timeout_s=30).text for task in parents] == [f"parent {number}" for number in range(20)]
        assert [results.get(timeout=30) for _ in children] == ["from the child"] * 2
    finally:
        for child in children:
            child.kill()
            child.join()


def ask_in_child(task: Task, client: Client, results: multiprocessing.Queue[str]) -> None:
    results.put(task.result(timeout_s=9).text)
    client.generate("now the child reads answers of its own")
    results.put(task.result(timeout_s=9).text)


@pytest.mark.threads
def test_a_task_submitted_before_a_fork_is_answered_in_the_child_too(slow: Client) -> None:
    task = slow.submit("one two three four five")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    child = context.Process(target=ask_in_child, args=(task, slow, results))
    child.start()
    try:
        assert [results.get(timeout=20) for _ in range(2)] == ["one two three four five"] * 2
        assert task.result(timeout_s=9).text == "one two three four five"
    finally:
        child.kill()
        child.join()


def test_the_fleet_shows_workers_models_and_what_waits(slow: Client, client: Client) -> None:
    wait_until(lambda: len(client.fleet().workers) == 2, "both workers have shown up again")
    tasks = [slow.submit(LONG) for _ in range(5)]
    wait_until(lambda: sum(model.running for model in client.fleet().models) == 2, "two of five run")
    fleet = client.fleet()
    [slow_model] = [model for model in fleet.models if model.name == "slow"]
    assert (slow_model.queued, slow_model.workers, slow_model.running) == (3, 1, 2)
    assert slow_model.oldest_s > 0
    assert {(worker.served_name, worker.engine) for worker in fleet.workers} == {("slow", "echo"), ("echo", "echo")}
    for task in tasks:
        task.cancel()


def test_without_a_model_and_several_served_the_error_names_them(client: Client, slow: Client) -> None:
    wait_until(lambda: len(client.fleet().workers) == 2, "both workers have shown up again")
    with Client(client.settings.broker_url) as unnamed, pytest.raises(InvalidRequestError, match="echo, slow"):
        unnamed.generate("a")


def test_a_hub_id_names_the_model_that_it_is_served_as_by_default(client: Client, broker_url: str) -> None:
    assert client.generate("a", model="Some-Organisation/Echo").model == "echo"
    with Client(broker_url, model="/models/echo.gguf") as other:
        assert other.generate("a").model == "echo"


def test_a_worker_that_comes_later_takes_what_has_waited(
    broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Client(broker_url, model="late") as client:
        task = client.submit("waited for long")
        with a_worker(broker_url, tmp_path_factory.mktemp("late") / "log", "--served-name", "late"):
            assert task.result(timeout_s=30).text == "waited for long"


def test_what_the_broker_has_forgotten_is_entered_again(
    client: Client, broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = client.submit("forgotten", model="later")
    client_of(broker_url).flushall()
    assert client.task(task.id).status() is TaskStatus.UNKNOWN
    with caplog.at_level(logging.WARNING, "promptmill"):
        wait_until(lambda: client.task(task.id).status() is TaskStatus.QUEUED, "it is there again")
    assert "forgotten 1 tasks" in caplog.text
