"""A model that can't be loaded ends with one sentence: why, and what to do."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.hub
from fake_hub import FakeHub, fake_hub
from huggingface_hub import constants
from tiny_models import tiny_model

from promptmill.errors import ModelLoadError
from promptmill_worker import checkpoint as checkpoint_module
from promptmill_worker import fit
from promptmill_worker.checkpoint import load_checkpoint
from promptmill_worker.settings import EngineSettings


def refused(model: str | Path, **options: Any) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(ModelLoadError) as caught:
        load_checkpoint(EngineSettings.read(model=str(model), **options))
    text = str(caught.value)
    assert text.startswith(f"model {str(model)!r} ")
    assert "\n" not in text
    return text


def edit(file: Path, **changes: Any) -> None:
    """Changes values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


@pytest.fixture
def hub(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub in the place of huggingface.co, and an empty cache."""
    with fake_hub(tiny=model, gated=model, private=model) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it remembers the hub of the first use
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_a_model_comes_from_the_hub_once_and_then_from_the_cache_with_the_hub_away_or_not_asked(hub: FakeHub) -> None:
    load_checkpoint(EngineSettings.read(model="demo/tiny"))
    hub.asked.clear()
    load_checkpoint(EngineSettings.read(model="demo/tiny", local_files_only=True))
    assert hub.asked == []
    hub.broken = 503
    load_checkpoint(EngineSettings.read(model="demo/tiny"))
    assert "does not answer and the model is not in the local cache" in refused("demo/other")


def test_a_name_that_the_hub_does_not_have_is_told_with_what_the_cache_has_under_nearly_that_name(hub: FakeHub) -> None:
    load_checkpoint(EngineSettings.read(model="demo/tiny"))
    for token in ("", "stranger"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_TOKEN", token)
            text = refused("demo/tyni")
        assert "the hub has no such model, or it is private: check the spelling" in text
        assert text.endswith("(there is demo/tiny)")
    assert "(there is demo/tiny)" in refused("other/tiny", local_files_only=True)
    assert "there is" not in refused("demo/quite-another")


def test_a_path_that_is_not_there_is_told_with_what_lies_beside_it(model: Path) -> None:
    assert refused(f"{model}s").endswith(f"no such folder or file: check the path (there is {model})")


def test_a_gated_model_needs_a_token_that_has_access(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "stranger"):
        monkeypatch.setenv("HF_TOKEN", token)
        assert "it is gated: accept its licence on huggingface.co, then set HF_TOKEN" in refused("demo/gated")
    monkeypatch.setenv("HF_TOKEN", "member")
    load_checkpoint(EngineSettings.read(model="demo/gated"))


def test_a_token_that_the_hub_refuses_is_told(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired")
    text = refused("demo/private")
    assert "the hub does not accept your token: set HF_TOKEN to a valid one" in text
    assert "expired" not in text


def test_a_revision_that_is_not_there_is_named(hub: FakeHub) -> None:
    assert "it has no revision 'v9': check the branch, tag or commit" in refused("demo/tiny", revision="v9")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b'{"model_type": "llama", '),
        ("tokenizer.json", b'{"version":'),
        ("model.safetensors", b""),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_file_is_named(model: Path, file: str, content: bytes | None) -> None:
    whole = (model / file).read_bytes()
    (model / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    text = refused(model)
    assert f"fetch it again ({file})" in text
    assert ("should be JSON" if file.endswith(".json") else "damaged or cut short") in text


def test_a_missing_file_of_the_weights_is_told(tmp_path: Path) -> None:
    sharded = tiny_model(tmp_path / "sharded", shard_bytes=40_000)
    sorted(sharded.glob("*.safetensors"))[1].unlink()
    assert "a file of its weights is missing: fetch it again" in refused(sharded)
    for file in sharded.glob("*.safetensors*"):
        file.unlink()
    assert "a file of its weights is missing: fetch it again" in refused(sharded)


def test_weights_that_no_file_holds_are_not_made_up(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=6)
    assert "18 of its 57 weights are in no file (model.layers.4.input_layernorm.weight, …)" in refused(model)


def test_weights_of_another_shape_are_told(model: Path) -> None:
    edit(model / "config.json", intermediate_size=128)
    assert "its weights have other shapes than its config.json says" in refused(model)


def test_a_model_without_a_tokenizer_is_told(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "it has no tokenizer that transformers can read: it needs a tokenizer.json" in refused(model)


def test_an_architecture_that_transformers_does_not_know_is_told(model: Path) -> None:
    edit(model / "config.json", model_type="of-tomorrow")
    assert "not a text generation model that transformers knows" in refused(model)


def test_a_model_that_is_stored_quantised_is_not_quantised_again(model: Path) -> None:
    edit(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "it is stored quantised already: unset quantization" in refused(model, quantization="bnb-4bit")
    assert "a library is missing: install it" in refused(model)


def test_quantisation_without_its_library_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    text = refused(model, quantization="bnb-8bit")
    assert "quantization=bnb-8bit needs bitsandbytes, which is not installed: pip install" in text


def test_what_does_not_fit_is_refused_before_it_is_fetched_with_both_sizes_and_what_would_fit(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"hidden_size": 256, "intermediate_size": 512}  # 2.5 million weights, of which 2.4 million in layers
    hub.models["demo/large"] = tiny_model(tmp_path / "large", **large)
    for free, options, told in [
        (
            6_000_000,
            {},
            "its weights need 9.5 MiB in float32, 5.7 MiB are free: set dtype=bfloat16 (about 4.8 MiB) or q",
        ),
        (3_000_000, {}, "2.9 MiB are free: set quantization=bnb-8bit (about 2.5 MiB) or quantization=bnb-4bit (about"),
        (2_000_000, {"quantization": "bnb-8bit"}, "2.5 MiB in bnb-8bit, 1.9 MiB are free: set quantization=bnb-4bit"),
        (200_000, {"quantization": "bnb-4bit"}, "are free: set device=balanced"),
    ]:
        monkeypatch.setattr(fit, "free_bytes", lambda _, free=free: free)
        assert told in refused("demo/large", **options)
    assert not any(path.endswith(".safetensors") for path in hub.asked)
    monkeypatch.setattr(fit, "free_bytes", lambda _: 10_000_000)
    load_checkpoint(EngineSettings.read(model="demo/large"))


def test_memory_that_runs_out_while_loading_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(checkpoint_module.AutoModelForCausalLM, "from_pretrained", full)
    assert "its weights do not fit the memory: set quantization=bnb-4bit or device=balanced" in refused(model)


def test_the_estimated_size_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, hidden_size=256, intermediate_size=512)
    for quantization, dtype in [
        (None, "float32"),
        (None, "bfloat16"),
        ("bnb-8bit", "float16"),
        ("bnb-4bit", "float32"),
    ]:
        settings = EngineSettings.read(model=str(model), quantization=quantization, dtype=dtype)
        loaded = load_checkpoint(settings).model
        estimated = fit.without_memory(loaded.config, settings)
        assert estimated is not None
        bytes_needed = fit.weights_bytes(estimated, getattr(torch, dtype), quantization)
        # transformers counts a few constants besides, but not the scales of quantised weights.
        assert 0.999 <= bytes_needed / loaded.get_memory_footprint() <= 1.05
