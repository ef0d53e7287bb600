"""Where a model lies: on one device, or spread over memory and disk, with the same texts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model

from promptmill.errors import InvalidSettingError, ModelLoadError, PromptTooLongError
from promptmill.protocol import GenerationRequest
from promptmill_worker import cache_size, hardware, placement
from promptmill_worker.engine import Engine
from promptmill_worker.hardware import pick_device
from promptmill_worker.offload_folder import new_offload_folder
from promptmill_worker.placement import placement_options, shown_placement, why_not_by_placement
from promptmill_worker.settings import EngineSettings


def test_a_model_larger_than_the_memory_it_may_use_generates_the_same_text_from_disk(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model", hidden_size=128, num_hidden_layers=6))
    prompts = ["Once upon a time", "Hello", "a"]
    texts, devices = [], []
    for options in ({}, {"device": "balanced", "max_memory": "cpu=1MB"}):
        with Engine.load(model, cache_dir=tmp_path / "cache", max_batch=4, **options) as engine:
            devices.append(engine.info.device)
            texts.append([result.text for result in engine.generate(prompts, max_tokens=16, seed=3)])
    assert devices == ["cpu", "cpu, disk"]
    assert texts[0] == texts[1]


@pytest.mark.gpu
def test_a_model_larger_than_its_gpu_generates_the_same_text_from_memory(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model", hidden_size=128, num_hidden_layers=6))
    texts, devices = [], []
    for options in ({"device": "cuda:0"}, {"device": "balanced", "max_memory": "0=1MB,cpu=1GB"}):
        with Engine.load(model, cache_dir=tmp_path / "cache", max_batch=4, **options) as engine:
            devices.append(engine.info.device)
            texts.append([result.text for result in engine.generate(["Once", "a"], max_tokens=16, temperature=0)])
    assert devices == ["cuda:0", "cuda:0, cpu"]
    assert texts[0] == texts[1]


def test_a_model_of_which_nothing_fits_the_device_is_told(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    with pytest.raises(ModelLoadError, match=r"not even its first part fits the device .* raise max_memory"):
        Engine.load(model, cache_dir=tmp_path / "cache", device="balanced", max_memory="cpu=0.001MB")


def test_balanced_takes_most_of_each_places_free_memory_or_what_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda place: {"cpu": 1000, "cuda": 100}[place.type])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    common = {"model": "demo", "device": "balanced", "cache_dir": tmp_path}
    auto = placement_options(EngineSettings.read(**common), torch.device("cuda", 0))
    assert auto["max_memory"] == {"cpu": 800, 0: 80, 1: 80}
    given = placement_options(EngineSettings.read(**common, max_memory="1=2GB,cpu=1.5GiB"), torch.device("cuda", 0))
    assert given["max_memory"] == {"cpu": 1_610_612_736, 0: 80, 1: 2_000_000_000}
    assert placement_options(EngineSettings.read(model="demo"), torch.device("cpu")) == {
        "device_map": {"": torch.device("cpu")}
    }
    with pytest.raises(InvalidSettingError, match="max_memory"):
        EngineSettings.read(**common, max_memory="much")


def test_several_computing_devices_have_no_common_cache_and_memory_and_disk_do_no_harm() -> None:
    def placed(**device_map: int | str) -> SimpleNamespace:
        return SimpleNamespace(hf_device_map=device_map)

    assert why_not_by_placement(placed(a=0, b="cpu", c="disk")) is None
    assert shown_placement(placed(a=0, b="cpu", c="disk", d=0)) == "cuda:0, cpu, disk"
    assert "spread over cuda:0 and cuda:1" in str(why_not_by_placement(placed(a=0, b=1, c="cpu")))
    assert shown_placement(SimpleNamespace(device=torch.device("mps"))) == "mps"


def test_the_best_device_is_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in [(1, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "device_count", lambda cuda=cuda: cuda)
        monkeypatch.setattr(hardware.torch.backends.mps, "is_available", lambda mps=mps: mps)
        for device in ("auto", "balanced"):
            assert str(pick_device(EngineSettings.read(model="demo", device=device))) == expected
    with pytest.raises(ModelLoadError, match="device mps is not there: it needs a Mac"):
        pick_device(EngineSettings.read(model="demo", device="mps"))


def test_weights_on_disk_go_with_their_process_or_with_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from promptmill_worker.offload_folder import new_offload_folder\n"
        "(new_offload_folder(pathlib.Path(sys.argv[1])) / 'weights').touch()\n"
        "os._exit(0) if sys.argv[2] == 'killed' else None"
    )

    def run(end: str) -> list[Path]:
        subprocess.run([sys.executable, "-c", script, str(tmp_path), end], check=True, timeout=60)
        return list((tmp_path / "offload").glob("*/weights"))

    assert run("killed")
    ours = new_offload_folder(tmp_path)
    (ours / "weights").touch()
    assert run("well") == [ours / "weights"]


def test_quantised_weights_are_not_put_on_disk(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model", hidden_size=128))
    options = {"device": "balanced", "max_memory": "cpu=0.3MB", "quantization": "bnb-4bit"}
    with pytest.raises(ModelLoadError, match="quantised weights can't lie in memory or on disk: unset quantization"):
        Engine.load(model, cache_dir=tmp_path / "cache", **options)


def test_a_context_larger_than_the_memory_gets_the_cache_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # 820 GB of keys and values.
    model = str(tiny_model(tmp_path, hidden_size=256, num_key_value_heads=4, max_position_embeddings=10**8))
    monkeypatch.setattr(cache_size, "free_bytes", lambda _: 100_000_000)
    with Engine.load(model) as engine:
        assert engine.info.context_tokens == 10**8
        assert 256 <= engine.info.cache_tokens < 10_000
        with pytest.raises(PromptTooLongError) as caught:
            engine.submit(GenerationRequest.of("a " * engine.info.cache_tokens)).result()
        assert caught.value.limit_tokens < engine.info.cache_tokens
        assert engine.submit(GenerationRequest.of("a", max_tokens=3)).result().text
    assert "memory suffices for a cache of" in caplog.text
    with Engine.load(model, max_model_len=64, max_batch=2) as engine:
        assert engine.info.context_tokens == 64
