"""The demo model, loaded once for the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from promptmill.demo_model import demo_model_path

if TYPE_CHECKING:  # the fixtures import these themselves: other tests of this folder run without torch
    from promptmill_worker.checkpoint import Checkpoint
    from promptmill_worker.continuous import ContinuousEngine

QUESTIONS = Path(__file__).parent.parent / "data" / "gsm8k_64.jsonl"


@pytest.fixture(scope="session")
def model_path() -> str:
    """The demo model's GGUF file."""
    return str(demo_model_path())


@pytest.fixture(scope="session")
def checkpoint(model_path: str) -> Checkpoint:
    """The demo model in float32, in which batch shapes change no greedy token."""
    from promptmill_worker.checkpoint import load_checkpoint
    from promptmill_worker.settings import EngineSettings

    return load_checkpoint(EngineSettings.read(model=model_path, dtype="float32"))


@pytest.fixture(scope="session")
def engine(checkpoint: Checkpoint, model_path: str) -> Iterator[ContinuousEngine]:
    """An engine on the demo model."""
    from promptmill_worker.continuous import ContinuousEngine
    from promptmill_worker.settings import EngineSettings

    with ContinuousEngine(checkpoint, EngineSettings.read(model=model_path, dtype="float32")) as engine:
        yield engine


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """64 questions of GSM8K."""
    return [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
