from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sites import EXAMPLES
from workers import a_process, wait_until

from promptmill.testing import StubWorker

ANSWERS = {
    "Once upon a time": "there was a mill.",
    "there was a mill.": " it ground prompts.",
    "Why is the sky blue?": "Rayleigh.",
    "Why is grass green?": "Chlorophyll.",
}


def test_a_chain_and_a_chord_go_through_the_applications_tasks_and_promptmills(
    worker: StubWorker, tmp_path: Path
) -> None:
    worker.answers = ANSWERS
    environment = {"CELERY_BROKER_URL": worker.broker_url, "PROMPTMILL_BROKER_URL": "redis://nowhere.invalid"}
    command = [sys.executable, "-m", "celery", "--workdir", str(EXAMPLES), "-A", "celery_canvas", "worker"]
    with a_process([*command, "-c", "1", "--loglevel", "INFO"], tmp_path / "log", **environment) as own:
        wait_until(lambda: " ready." in own.log, "the application's own worker is ready", timeout_s=60)
        script = [sys.executable, str(EXAMPLES / "celery_canvas.py")]
        done = subprocess.run(script, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["It ground prompts.", "- Rayleigh.", "- Chlorophyll."], done.stderr
    assert [request.sampling.max_tokens for request in worker.requests] == [40, 20, 60, 60]


def test_the_example_imports_nothing_of_promptmill() -> None:
    assert "import promptmill" not in (text := (EXAMPLES / "celery_canvas.py").read_text())
    assert "from promptmill" not in text
