"""A whole night's run in small: all questions on the real model, and a file that is long."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from batch_files import numbers, read, written
from workers import a_worker, wait_until

from promptmill import Client
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker

pytestmark = pytest.mark.soak

QUESTIONS = Path(__file__).parent.parent / "data" / "gsm8k_660.jsonl"

#: How much a run over 100,000 lines may grow once it is under way, in KiB: 17 bytes a line, and what allocators keep.
GROWTH_KIB = 12_000


@contextmanager
def a_batch(broker: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "promptmill.cli", "batch", *map(str, arguments)]
    process = subprocess.Popen(command, env={**os.environ, "PROMPTMILL_BROKER_URL": broker})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.model
@pytest.mark.timeout(0)
def test_660_questions_killed_three_times_are_answered_once_each(
    embedded_broker: EmbeddedBroker, model_path: str, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    arguments = (QUESTIONS, "--output", output, "--field", "question", "--chat", "--temperature", "0")
    arguments = (*arguments, "--max-tokens", "16", "--model", "smollm2", "--max-in-flight", "64")
    options = ["--model", model_path, "--served-name", "smollm2", "--dtype", "float32"]
    url = embedded_broker.url
    with LocalWorker(url, options, tmp_path / "worker.log") as worker, Client(url) as client:
        worker.wait_until_ready(client)
        draw = random.Random()
        for kill in range(3):
            with a_batch(url, *arguments):
                wanted = 100 + 150 * kill + draw.randrange(100)
                wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= wanted, "answers", 900)  # noqa: B023
                time.sleep(draw.random())
        with a_batch(url, *arguments) as process:
            assert process.wait(1800) == 0
    found = read(output)
    assert sorted(numbers(found)) == list(range(1, 661))
    assert len({line["custom_id"] for line in found}) == 660
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in found)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_memory_of_a_run_over_100000_lines_stays_flat(broker_url: str, tmp_path: Path, suffix: str) -> None:
    count = 100_000
    source = written(
        tmp_path / f"in.jsonl{suffix}", *({"prompt": f"{number} " + "word " * 20} for number in range(count))
    )
    output = tmp_path / f"out.jsonl{suffix}"
    sizes_kib = []
    with (
        a_worker(broker_url, tmp_path / "log"),
        a_batch(broker_url, source, "--output", output, "--model", "echo") as run,
    ):
        while run.poll() is None:
            time.sleep(1)
            status = Path(f"/proc/{run.pid}/status").read_text()
            sizes_kib += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
        assert run.returncode == 0
    assert max(sizes_kib) - sizes_kib[len(sizes_kib) // 5] < GROWTH_KIB, sizes_kib
    assert sorted(numbers(read(output))) == list(range(1, count + 1))
