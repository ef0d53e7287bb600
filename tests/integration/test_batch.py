"""Files of prompts, run by a real worker: what is answered, and what a second run does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from batch_files import OPENED, numbers, prompts, read, written
from brokers import free_port
from command_line import promptmill
from workers import WorkerProcess, a_worker, wait_until

from promptmill import BrokerUnavailableError, Client, InvalidRequestError, NoWorkerError, SamplingParams
from promptmill.batch import Batch, BatchOptions, LineFormat
from promptmill.batch.answer import Answer
from promptmill.embedded import EmbeddedBroker

FAULT = {"prompt": "promptmill-fault:error"}


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at once."""
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log") as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo", max_request_bytes=2000) as client:
        yield client


def run(
    client: Client,
    source: Path,
    output: Path | None = None,
    stop_after: int | None = None,
    lines: LineFormat | None = None,
    **options: Any,
) -> list[Answer]:
    """Runs the batch; returns what was answered in this run."""
    answers: list[Answer] = []

    def count(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) == stop_after:
            raise KeyboardInterrupt

    output = output or source.with_name(f"out.jsonl{source.suffix if source.suffix in OPENED else ''}")
    options = {"simple": True, "lines": lines or LineFormat(), **options}
    with Batch(client, BatchOptions(input=source, output=output, **options)) as batch:
        try:
            batch.run(count, batch.count())
        except KeyboardInterrupt:
            assert stop_after is not None
    return answers


def answers(client: Client, source: Path, **options: Any) -> list[dict[str, Any]]:
    """The output, in the order of the input."""
    run(client, source, **options)
    return sorted(read(source.with_name("out.jsonl")), key=lambda line: int(line["promptmill"]["line"]))


def test_a_line_has_its_own_parameters_over_those_of_the_run(client: Client, tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl",
        {"prompt": "a b c d"},
        {"prompt": "a b c d", "max_tokens": 1, "id": 5},
        {"prompt": "a b c d", "max_completion_tokens": 3, "answer": 42, "id": "mine"},
        {"prompt": "a b c d", "stop": "b", "seed": None},
    )
    found = answers(client, source, lines=LineFormat(SamplingParams(max_tokens=2)))
    assert [line["text"] for line in found] == ["a b", "a", "a b c", "a "]
    assert [line["id"] for line in found] == ["line-1", 5, "mine", "line-4"]


def test_prompts_chats_fields_and_system_messages(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"question": "q"}, {"messages": [{"role": "user", "content": "m"}]})
    for given in ({}, {"chat": True, "system": "s"}):
        found = answers(client, source, lines=LineFormat(prompt_field="question", **given))
        assert [line["text"] for line in found] == ["q", "m"]


WRONG = [
    b"no json",
    b"[1, 2]",
    b'"a string"',
    b"null",
    b"{}",
    b'{"prompt": ""}',
    b'{"prompt": 5}',
    b'{"prompt": null}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
    b'{"messages": []}',
    b'{"messages": [{"role": "robot", "content": "b"}]}',
    b'{"prompt": "a", "temperature": 9}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "max_tokens": "many"}',
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
    b"[" * 100_000,
    b'{"prompt": "' + b"x" * 3000 + b'"}',
    b"\xff\xfe",
    b"\x00",
    b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}',
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_wrong_line_is_reported_by_its_number_and_the_rest_goes_on(
    client: Client, tmp_path: Path, wrong: bytes
) -> None:
    source = written(tmp_path / "in.jsonl", '{"prompt": "first"}', "", wrong, "   ", '{"prompt": "last"}')
    first, middle, last = answers(client, source)
    assert (numbers([first, middle, last]), first["text"], last["text"]) == ([1, 3, 5], "first", "last")
    assert middle["error"]["type"] == "InvalidRequestError"
    assert middle["error"]["message"]


def test_wrong_lines_among_right_ones_keep_their_places_whatever_the_window(client: Client, tmp_path: Path) -> None:
    lines = [{"prompt": f"line {number}"} if number % 3 else "wrong" for number in range(1, 301)]
    for max_in_flight in (1, 7, 64, None):
        source = written(tmp_path / "in.jsonl", *lines)
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        found = answers(client, source, max_in_flight=max_in_flight)
        assert numbers(found) == list(range(1, 301))
        assert [number for number, line in enumerate(found, 1) if "error" in line] == list(range(3, 301, 3))
        assert all(line["text"] == f"line {line['promptmill']['line']}" for line in found if "error" not in line)


@pytest.mark.parametrize("lines", [(), ("",), ("wrong",) * 200])
def test_a_file_without_a_right_line_is_no_trouble(client: Client, tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert len(answers(client, written(tmp_path / "in.jsonl", *lines))) == sum(bool(line) for line in lines)


def test_windows_line_ends_and_a_byte_order_mark_are_no_trouble(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r', b'{"prompt": "b"}\r', b"\r")
    assert [line["text"] for line in answers(client, source)] == ["a", "b"]


def test_openais_lines_are_answered_in_openais_format(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", 0.5)
    wait_until(lambda: client.fleet().workers, "the worker's record, which went with the other keys")
    chat = {"model": "echo", "messages": [{"role": "user", "content": "a b"}], "n": 2, "logprobs": True}
    source = written(
        tmp_path / "in.jsonl",
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": {"prompt": "c d", "max_tokens": 1}},
        {"custom_id": "long", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x" * 3000}},
        {"custom_id": "none", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "gpt-7"}},
    )
    found = {line["custom_id"]: line for line in answers(client, source, simple=False)}
    body = found["chat"]["response"]["body"]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a b", "a b"]
    assert len(body["choices"][0]["logprobs"]["content"]) == 2
    assert found["text"]["response"]["body"]["choices"][0]["text"] == "c"
    assert found["text"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert found["long"]["response"]["status_code"] == found["none"]["response"]["status_code"] == 400
    assert "served are: echo" in found["none"]["response"]["body"]["error"]["message"]


def test_one_model_answers_all_lines_if_that_is_wanted(client: Client, tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "gpt-7"}}
    [found] = answers(client, written(tmp_path / "in.jsonl", line), ignore_model=True)
    assert (found["text"], found["model"]) == ("x", "echo")


def test_each_line_is_answered_by_the_model_that_it_names(
    worker: WorkerProcess, broker_url: str, tmp_path: Path
) -> None:
    def line(number: int, model: str) -> dict[str, Any]:
        body = {"prompt": f"{number}", "model": model}
        return {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body}

    source = written(tmp_path / "in.jsonl", *(line(number, ("echo", "second")[number % 2]) for number in range(60)))
    with a_worker(broker_url, tmp_path / "log", "--served-name", "second"), Client(broker_url) as client:
        wait_until(lambda: len(client.fleet().workers) == 2, "both workers' records")
        found = answers(client, source)
        assert len(found) == 60
        assert all(entry["promptmill"]["worker"] for entry in found)
        assert run(client, source) == []
        plain = written(tmp_path / "plain.jsonl", {"prompt": "a"})
        with pytest.raises(InvalidRequestError, match="several models are served"):
            run(client, plain, tmp_path / "plain-out.jsonl")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_second_run_does_only_what_the_first_one_left(client: Client, tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path / f"in.jsonl{suffix}", *prompts(400))
    output = tmp_path / f"out.jsonl{suffix}"
    first = run(client, source, stop_after=123)
    assert len(read(output)) == len(first) == 123
    second = run(client, source)
    assert len(second) == 400 - 123
    assert run(client, source) == []
    found = read(output)
    assert sorted(numbers(found)) == list(range(1, 401))
    assert all(line["text"] == f"line {line['promptmill']['line']}" for line in found)
    run(client, source, ordered=True)
    assert numbers(read(output)) == list(range(1, 401))


def test_a_changed_line_is_run_again_and_its_old_answer_is_gone_in_the_end(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(10))
    run(client, source)
    changed = prompts(10)
    changed[3] = {"prompt": "changed"}
    written(source, *changed[:8])
    assert len(run(client, source)) == 1
    found = sorted(read(tmp_path / "out.jsonl"), key=lambda line: int(line["promptmill"]["line"]))
    assert numbers(found) == list(range(1, 9))
    assert found[3]["text"] == "changed"
    written(source, *changed[:2], "", *changed[3:8])
    assert run(client, source) == []
    assert sorted(numbers(read(tmp_path / "out.jsonl"))) == [1, 2, 4, 5, 6, 7, 8]


def test_answers_of_other_options_stay_until_all_is_answered_anew(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(50))
    run(client, source)
    output = tmp_path / "out.jsonl"
    forgotten = LineFormat(SamplingParams(max_tokens=1))
    run(client, source, stop_after=5, lines=forgotten)
    assert len(read(output)) == 55
    assert len(run(client, source)) == 5  # those that were overtaken; the other 45 were never lost
    assert sorted(numbers(read(output))) == list(range(1, 51))
    assert all(line["text"] == f"line {line['promptmill']['line']}" for line in read(output))


@pytest.mark.parametrize("simple", [True, False])
def test_the_output_of_another_batch_is_refused_before_anything_is_sent_and_kept(
    client: Client, tmp_path: Path, simple: bool
) -> None:
    output = tmp_path / "out.jsonl"
    run(client, written(tmp_path / "one.jsonl", *prompts(9), FAULT), output, simple=simple)
    before = output.read_bytes()
    others = [{"prompt": f"other {number}"} for number in range(12)]
    for name, lines in {"other": others, "mixed": prompts(4) + others, "cut": prompts(4), "empty": []}.items():
        source = written(tmp_path / f"{name}.jsonl", *lines)
        with pytest.raises(InvalidRequestError, match=rf"out.jsonl has 9 answers, and {name}.jsonl has [04] of their"):
            Batch(client, BatchOptions(input=source, output=output, simple=simple, retry_failed=True))
        assert output.read_bytes() == before
    assert len(run(client, written(tmp_path / "longer.jsonl", *prompts(5), *others), output, simple=simple)) == 12


def test_another_batchs_file_of_errors_is_refused_and_kept(client: Client, tmp_path: Path) -> None:
    errors, answered = tmp_path / "errors.jsonl", tmp_path / "answered.jsonl"
    run(client, written(tmp_path / "one.jsonl", *prompts(3), FAULT, "wrong"), answered, errors=errors)
    before = errors.read_bytes()
    source = written(tmp_path / "other.jsonl", *prompts(9))
    with pytest.raises(InvalidRequestError, match=r"errors.jsonl has 2 failed lines, and other.jsonl has 0 of their"):
        run(client, source, tmp_path / "out.jsonl", errors=errors)
    assert errors.read_bytes() == before
    before = answered.read_bytes()
    for output in (tmp_path / "out.jsonl", Path("/dev/null")):
        with pytest.raises(InvalidRequestError, match=r"answered.jsonl has answers, so it is no file of errors"):
            run(client, source, output, errors=answered)
    assert answered.read_bytes() == before


def test_a_pipe_loses_no_answers_of_lines_that_it_has_not(client: Client, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(client, written(tmp_path / "in.jsonl", *prompts(9)), output)
    before = output.read_bytes()
    for lines, code in (("other", 2), ("line", 0)):
        text = "".join(json.dumps({"prompt": f"{lines} {number}"}) + "\n" for number in (1, 2))
        options = ("--output", output, "--simple", "--model", "echo")
        done = promptmill("batch", "-", *options, broker=client.settings.broker_url, text=text)
        assert done.returncode == code, done.stderr
        assert ("line 1 of standard input is not the one that out.jsonl has an answer to" in done.stderr) is bool(code)
        assert output.read_bytes() == before


def test_failed_lines_are_left_alone_or_tried_again_as_is_wanted(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(5), FAULT, "wrong")
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    assert len(run(client, source, errors=errors)) == 7
    assert sorted(numbers(read(output))) == [1, 2, 3, 4, 5]
    assert sorted(numbers(read(errors))) == [6, 7]
    assert run(client, source, errors=errors) == []
    assert len(run(client, source, errors=errors, retry_failed=True)) == 2
    assert sorted(numbers(read(errors))) == [6, 7]
    written(source, *prompts(5), {"prompt": "mended"}, "wrong")
    assert len(run(client, source, errors=errors)) == 1
    assert sorted(numbers(read(output))) == [1, 2, 3, 4, 5, 6]
    assert numbers(read(errors)) == [7]


def test_a_killed_run_does_not_hide_that_a_changed_line_has_failed(client: Client, tmp_path: Path) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    source = written(tmp_path / "in.jsonl", *prompts(3))
    run(client, source, errors=errors)
    for _ in range(2):
        written(source, *prompts(2), FAULT)
        run(client, source, errors=errors, stop_after=1)
        assert sorted(numbers(read(output))) == [1, 2, 3]
        assert run(client, source, errors=errors) == []
        assert (sorted(numbers(read(output))), numbers(read(errors))) == ([1, 2], [3])
        written(source, *prompts(3))
        run(client, source, errors=errors, stop_after=1)
        assert numbers(read(errors)) == [3]
        assert run(client, source, errors=errors) == []
        assert (sorted(numbers(read(output))), read(errors)) == ([1, 2, 3], [])


def test_failed_lines_in_the_output_are_replaced_when_they_are_tried_again(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(3), FAULT)
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    run(client, source, simple=False)
    for _ in range(2):
        assert len(run(client, source, simple=False, retry_failed=True)) == 1
        assert sorted(numbers(read(output))) == [1, 2, 3, 4]
    run(client, source, simple=False, retry_failed=True, errors=errors, stop_after=1)
    assert run(client, source, simple=False, errors=errors) == []
    assert sorted(numbers(read(output))) == [1, 2, 3]
    assert numbers(read(errors)) == [4]


def test_an_output_in_the_other_format_or_of_somebody_else_is_refused_and_kept(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(3))
    output = tmp_path / "out.jsonl"
    run(client, source)
    before = output.read_bytes()
    with pytest.raises(InvalidRequestError, match=r"simple lines: .*--simple"):
        run(client, source, simple=False)
    assert output.read_bytes() == before
    for strange in (
        '{"id": 1}\n',
        '{"promptmill": {"line": 0, "checksum": "0", "digest": "0"}}\n',
        "text\n",
        '{"promptmill": 7}\n',
    ):
        output.write_text(strange)
        with pytest.raises(InvalidRequestError, match="did not write, line 1"):
            run(client, source)
        assert output.read_text() == strange


def test_a_damaged_input_is_found_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        source = written(tmp_path / f"in.jsonl{suffix}", *prompts(2000))
        source.write_bytes(source.read_bytes()[:-20])
        with pytest.raises(InvalidRequestError, match="damaged or cut off after line"):
            run(client, source)
        assert read(tmp_path / f"out.jsonl{suffix}") == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_pipe_is_refused_before_anything_is_sent(client: Client, tmp_path: Path, suffix: str) -> None:
    source, pipe = written(tmp_path / "in.jsonl", *prompts(1)), tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    kept = os.open(pipe, os.O_RDWR)  # so that nobody waits for its other end
    for options in (
        BatchOptions(input=pipe, output=tmp_path / "out.jsonl"),
        BatchOptions(input=source, output=pipe),
        BatchOptions(input=source, output=tmp_path / "out.jsonl", errors=pipe),
    ):
        with pytest.raises(InvalidRequestError, match=f"pipe{suffix} is a pipe, and only files are compressed here"):
            Batch(client, options)
    os.close(kept)


def test_repeated_ids_are_counted(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *(prompts(3, id="same") + prompts(2)))
    with Batch(client, BatchOptions(input=source, output=tmp_path / "out.jsonl")) as batch:
        batch.run(lambda _: None)
        assert (batch.lines, batch.repeated_ids) == (5, 2)


def test_a_model_that_is_named_is_waited_for_a_while(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", 60.0)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "late"}}
    source = written(tmp_path / "in.jsonl", line)
    with (
        a_worker(broker_url, tmp_path / "log", "--served-name", "late", ready=False),
        Client(broker_url) as client,
    ):
        [answer] = run(client, source)
    assert (answer.result.text, answer.result.model) == ("x", "late")


def test_a_line_that_was_refused_for_its_model_is_not_waited_for_again(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", 0.0)
    wait_until(lambda: client.fleet().workers, "the worker's record, which went with the other keys")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "gpt-7"}}
    source = written(tmp_path / "in.jsonl", line)
    [answer] = run(client, source)
    assert "is not served" in str(answer.result.error)
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", float("inf"))
    assert run(client, source) == []


@pytest.mark.parametrize("is_served", [True, False])
def test_answers_outlive_their_models_workers(
    worker: WorkerProcess, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_served: bool
) -> None:
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", 0.5)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "late"}}
    new = {**line, "custom_id": "b"}
    source, output = written(tmp_path / "in.jsonl", line), tmp_path / "out.jsonl"
    with a_worker(broker_url, tmp_path / "log", "--served-name", "late"), Client(broker_url) as client:
        [answer] = run(client, source, output=output)
    assert answer.result.model == "late"
    before = read(output)
    with EmbeddedBroker() as empty, Client(broker_url if is_served else empty.url) as client:
        wait_until(lambda: [w.served_name for w in client.fleet().workers] == ["echo"] * is_served, "late is gone")
        assert run(client, source, output=output) == []
        assert read(output) == before
        if is_served:
            [answer] = run(client, written(source, line, new), output=output, retry_failed=True)
            assert (answer.ticket.custom_id, read(output)[0]) == ("b", before[0])


def test_a_broker_that_goes_away_while_a_model_is_looked_for_is_waited_for(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "none"}}
    source = written(tmp_path / "in.jsonl", line)
    with (
        EmbeddedBroker() as broker,
        Client(broker.url, model="another", broker_timeout_s=2) as client,
        Batch(client, BatchOptions(input=source, output=tmp_path / "out.jsonl")) as batch,
    ):
        broker.stop()
        answers: list[Answer] = []
        running = Thread(target=batch.run, args=(answers.append,), daemon=True)
        running.start()
        running.join(5)
        assert running.is_alive()
        broker.start()
        running.join(60)
    assert "is not served" in str(answers[0].result.error)


def test_lines_fail_for_no_want_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptmill.batch.model_choice.PATIENCE_S", 0.5)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "model": "echo"}}
    source, output = written(tmp_path / "in.jsonl", line), tmp_path / "out.jsonl"
    with EmbeddedBroker() as broker, Client(broker.url) as client:
        with pytest.raises(NoWorkerError, match="no worker is up"):
            run(client, source, output=output)
        with a_worker(broker.url, tmp_path / "log"):
            [answer] = run(client, source, output=output)
    assert answer.result.text == "x"


def test_without_a_broker_no_file_is_touched(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *prompts(1))
    with Client(f"redis://127.0.0.1:{free_port()}/0") as client, pytest.raises(BrokerUnavailableError):
        Batch(client, BatchOptions(input=source, output=tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()
