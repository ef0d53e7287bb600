"""The examples that are scripts: rows in, rows out."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from sites import EXAMPLES

from promptmill import EngineError, GenerationRequest, PromptTooLongError
from promptmill.testing import StubWorker


def run(name: str, worker: StubWorker, folder: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Runs an example to its end."""
    environment = {**os.environ, **worker.environment, "HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def answer(request: GenerationRequest) -> str:
    assert request.messages is not None
    question = request.messages[-1].content
    if question == "too long?":
        raise PromptTooLongError("the prompt has 9 tokens, at most 3 fit", 9, 3)
    return f'{question} Yes, "so", they say.\n'


def test_a_notebooks_prompts_have_a_progress_bar(worker: StubWorker, tmp_path: Path) -> None:
    def poem(request: GenerationRequest) -> str:
        if request.prompt == "A poem about a dog:":
            raise EngineError("no dogs")
        return f"{request.prompt} it sleeps"

    worker.answers = poem
    done = run("progress_bar.py", worker, tmp_path)
    poems = [f"A poem about a {animal}: it sleeps" for animal in ("cat", "mouse", "elephant")]
    assert done.stdout.splitlines() == [poems[0], "no dogs", *poems[1:]]
    last = done.stderr.split("\r")[-1]
    assert "100/100" in last
    assert "failed=25" in last
    assert "tokens/s=" in last


def test_a_column_of_a_frame_becomes_two_and_a_row_that_fails_stays(worker: StubWorker, tmp_path: Path) -> None:
    worker.answers = answer
    questions, answers = tmp_path / "questions.csv", tmp_path / "answers.csv"
    with questions.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "question"], ["7", "a?"], ["5", ""], ["5", "too long?"], ["6", "b, c?"]])
    run("pandas_column.py", worker, tmp_path, questions, answers)
    with answers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["answer"]) for row in rows] == [
        ("7", 'a? Yes, "so", they say.\n'),
        ("5", ""),
        ("5", ""),
        ("6", 'b, c? Yes, "so", they say.\n'),
    ]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert "at most 3 fit" in rows[2]["error"]


def test_the_rows_of_a_dataset_keep_their_columns_and_get_two_more(worker: StubWorker, tmp_path: Path) -> None:
    worker.answers = answer
    questions, target = tmp_path / "questions.jsonl", tmp_path / "answers"
    texts = [f"question {number}?" for number in range(3000)]
    texts[5] = "too long?"
    questions.write_text(
        "".join(json.dumps({"id": number, "question": text}) + "\n" for number, text in enumerate(texts))
    )
    run("datasets_column.py", worker, tmp_path, questions, target)

    from datasets import load_from_disk

    rows = load_from_disk(str(target))
    assert rows.column_names == ["id", "question", "answer", "error"]
    assert rows["id"][:] == list(range(3000))
    assert [row["answer"] for row in rows if row["id"] != 5] == [
        f'{text} Yes, "so", they say.\n' for text in texts if text != "too long?"
    ]
    assert (rows[5]["answer"], rows[5]["error"]) == ("", "the prompt has 9 tokens, at most 3 fit")
    assert len(worker.requests) == 3000
    run("datasets_column.py", worker, tmp_path, questions, tmp_path / "again")
    assert len(worker.requests) == 3000, "the same call finds its answers in the cache"
