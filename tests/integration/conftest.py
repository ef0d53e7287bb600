"""The demo model, loaded once for the whole run; whole, and a few of its layers where the texts need no sense."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loop_client import LoopClient

from promptmill.demo_model import demo_model_path

if TYPE_CHECKING:  # the fixtures import these themselves: other tests of this folder run without torch
    from promptmill_worker.checkpoint import Checkpoint
    from promptmill_worker.continuous import ContinuousEngine

#: How many of the demo model's 30 layers the shallow one has.
SHALLOW_LAYERS = 3

QUESTIONS = Path(__file__).parent.parent / "data" / "gsm8k_64.jsonl"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What uses ``each_client`` runs twice, unless marked ``threads``."""
    if "each_client" in metafunc.fixturenames and not metafunc.definition.get_closest_marker("threads"):
        metafunc.parametrize("each_client", ["Client", "AsyncClient"], indirect=True)


@pytest.fixture
def each_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the module's own ``Client`` be the one that is asked for."""
    if getattr(request, "param", "Client") == "AsyncClient":
        monkeypatch.setattr(request.module, "Client", LoopClient)


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
def shallow_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The demo model's first layers: it writes nonsense, several times as fast."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.model.config)
    config.num_hidden_layers = SHALLOW_LAYERS
    model = AutoModelForCausalLM.from_config(config, dtype=checkpoint.model.dtype)
    kept = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in checkpoint.model.state_dict().items() if name in kept})
    model.generation_config = checkpoint.model.generation_config
    return replace(checkpoint, model=model.eval())


@pytest.fixture(scope="session")
def shallow_engine(shallow_checkpoint: Checkpoint) -> Iterator[ContinuousEngine]:
    """An engine on the shallow model."""
    from promptmill_worker.continuous import ContinuousEngine
    from promptmill_worker.settings import EngineSettings

    with ContinuousEngine(shallow_checkpoint, EngineSettings.read(model="shallow")) as engine:
        yield engine


@pytest.fixture(scope="session")
def shallow_path(shallow_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the shallow model, which loads in no time."""
    folder = tmp_path_factory.mktemp("shallow")
    shallow_checkpoint.model.save_pretrained(folder)
    shallow_checkpoint.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """64 questions of GSM8K."""
    return [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
