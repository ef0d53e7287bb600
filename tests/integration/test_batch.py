from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workers import WorkerProcess, a_worker

from promptmill import Client, SamplingParams
from promptmill.batch_file import BatchFile, run_batch
from promptmill.embedded import EmbeddedBroker


@pytest.fixture(scope="module")
def worker(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Answers "echo" at once."""
    with a_worker(embedded_broker.url, tmp_path_factory.mktemp("echo") / "log") as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess, broker_url: str) -> Iterator[Client]:
    with Client(broker_url, model="echo", max_request_bytes=2000) as client:
        yield client


def answers(client: Client, path: Path, max_in_flight: int = 64, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"field": "prompt", "chat": False, "system": None, "params": SamplingParams()}
    source = BatchFile(path, **{**settings, **changes})
    return [json.loads(line.to_json()) for line in run_batch(client, source, max_in_flight)]


def a_file(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_answers_come_in_the_files_order_with_its_line_numbers(client: Client, tmp_path: Path) -> None:
    path = a_file(tmp_path, *(json.dumps({"prompt": f"line {number}"}) for number in range(1, 501)))
    read = answers(client, path)
    assert [(line["line"], line["text"]) for line in read] == [(number, f"line {number}") for number in range(1, 501)]


def test_a_line_has_its_own_parameters_over_those_of_the_run(client: Client, tmp_path: Path) -> None:
    path = a_file(
        tmp_path,
        '{"prompt": "a b c d"}',
        '{"prompt": "a b c d", "max_tokens": 1}',
        '{"prompt": "a b c d", "max_completion_tokens": 3, "answer": 42, "id": "kept out"}',
        '{"prompt": "a b c d", "stop": "b"}',
    )
    read = answers(client, path, params=SamplingParams(max_tokens=2))
    assert [line["text"] for line in read] == ["a b", "a", "a b c", "a "]


def test_prompts_chats_fields_and_system_messages(client: Client, tmp_path: Path) -> None:
    path = a_file(tmp_path, '{"question": "q"}', '{"messages": [{"role": "user", "content": "m"}]}')
    assert [line["text"] for line in answers(client, path, field="question")] == ["q", "m"]
    assert [line["text"] for line in answers(client, path, field="question", chat=True, system="s")] == ["q", "m"]


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
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_wrong_line_is_reported_by_its_number_and_the_rest_goes_on(
    client: Client, tmp_path: Path, wrong: bytes
) -> None:
    path = a_file(tmp_path, '{"prompt": "first"}', "", wrong, "   ", '{"prompt": "last"}')
    first, middle, last = answers(client, path)
    assert (first["line"], first["text"], last["line"], last["text"]) == (1, "first", 5, "last")
    assert middle["line"] == 3
    assert middle["error"]["type"] == "InvalidRequestError"
    assert middle["error"]["args"][0]


def test_wrong_lines_among_right_ones_keep_their_places_whatever_the_window(client: Client, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"line {number}"}) if number % 3 else "wrong" for number in range(1, 301)]
    for max_in_flight in (1, 7, 64, 1000):
        read = answers(client, a_file(tmp_path, *lines), max_in_flight)
        assert [line["line"] for line in read] == list(range(1, 301))
        assert [line["line"] for line in read if "error" in line] == list(range(3, 301, 3))
        assert all(line["text"] == f"line {line['line']}" for line in read if "error" not in line)


@pytest.mark.parametrize("lines", [(), ("",), ("wrong",) * 200])
def test_a_file_without_a_right_line_is_no_trouble(client: Client, tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert len(answers(client, a_file(tmp_path, *lines))) == sum(bool(line) for line in lines)


def test_windows_line_ends_and_a_byte_order_mark_are_no_trouble(client: Client, tmp_path: Path) -> None:
    path = a_file(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r', b'{"prompt": "b"}\r', b"\r")
    assert [line["text"] for line in answers(client, path)] == ["a", "b"]
