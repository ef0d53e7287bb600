"""Loading: what works, and what each failure says."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from promptmill.errors import InvalidSettingError, ModelLoadError
from promptmill_worker import gguf
from promptmill_worker.checkpoint import load_checkpoint, quantization_config
from promptmill_worker.engine import Engine
from promptmill_worker.gguf import converted_copy, gguf_file
from promptmill_worker.hardware import cpu_threads, pick_dtype
from promptmill_worker.settings import EngineSettings


def settings(model: str = "demo", **options: Any) -> EngineSettings:
    """Engine settings."""
    return EngineSettings.read(model=model, **options)


def folder(path: Path, **config: Any) -> str:
    """A model folder with nothing but a config.json."""
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.model
def test_the_demo_model_loads_from_its_converted_copy(model_path: str) -> None:
    checkpoint = load_checkpoint(settings(model_path))
    assert checkpoint.tokenizer.padding_side == "left"
    assert checkpoint.tokenizer.pad_token is not None
    assert checkpoint.tokenizer.chat_template
    assert checkpoint.end_ids == {2}
    assert checkpoint.precision in {"float32", "bfloat16"}
    assert torch.get_num_threads() == cpu_threads(settings())


@pytest.mark.model
@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit"])
def test_a_quantised_model_generates_and_is_smaller(model_path: str, kind: str) -> None:
    with Engine.load(model_path, quantization=kind) as engine:
        assert engine.info.precision == kind
        assert engine.info.weights_bytes < 250_000_000
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in next(engine.generate([chat], max_tokens=12, temperature=0)).text


@pytest.mark.model
def test_a_folder_loads_and_a_missing_padding_token_is_mended(model_path: str, tmp_path: Path) -> None:
    copied = converted_copy(Path(model_path), settings().cache_dir)
    for file in copied.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((copied / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("pad_token", None)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = load_checkpoint(settings(str(tmp_path), dtype="bfloat16"))
    assert checkpoint.tokenizer.pad_token == checkpoint.tokenizer.eos_token
    assert checkpoint.precision == "bfloat16"


def test_a_hub_that_does_not_answer_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(ModelLoadError, match=r"'owner/none'.*does not answer.*check the network"):
        Engine.load("owner/none")
    assert time.monotonic() - started < 30  # not minutes of retries


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("/nowhere/at/all", {}, "no such folder or file"),
        ("./model.gguf", {}, "no such folder or file"),
        ("a name/with/slashes", {}, "no name on the hub"),
        ("owner/none", {"local_files_only": True}, "not in the local cache"),
        ("owner/none", {"device": "cuda:63"}, "device cuda:63 is not there"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Engine.load(model, **options)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        Engine.load(str(tmp_path))


def test_a_model_that_generates_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not a text generation model"):
        Engine.load(folder(tmp_path, model_type="vit", architectures=["ViTModel"]))


def test_a_model_with_its_own_code_is_not_trusted_unasked(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    with pytest.raises(ModelLoadError, match="set trust_remote_code"):
        Engine.load(folder(tmp_path, model_type="homemade", auto_map=auto_map))


def test_a_bad_option_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSettingError, match="device"):
        Engine.load("demo", device="tpu")


def test_dtype_auto_is_the_checkpoints_and_float32_where_a_cpu_has_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    for has_it, stored, expected in [
        (True, torch.bfloat16, torch.bfloat16),
        (True, torch.float16, torch.bfloat16),
        (True, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.float32),
        (False, torch.float16, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_it=has_it: {"avx512_bf16": has_it})
        assert pick_dtype(settings(), cpu, stored) == expected
    assert pick_dtype(settings(dtype="float16"), cpu, torch.float32) == torch.float16


def test_four_bits_are_nf4_twice_quantised_and_compute_in_what_the_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    for has_bfloat16, dtype, computes_in in [
        (True, torch.float32, torch.bfloat16),
        (False, torch.float32, torch.float32),
        (True, torch.bfloat16, torch.bfloat16),
        (False, torch.float16, torch.float16),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_it=has_bfloat16: {"avx512_bf16": has_it})
        config = quantization_config("bnb-4bit", cpu, dtype)
        assert config.bnb_4bit_compute_dtype == computes_in
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert quantization_config("bnb-8bit", cpu, torch.float16).load_in_8bit
    assert pick_dtype(settings(quantization="bnb-8bit"), cpu, torch.bfloat16) == torch.float16


def test_a_gguf_file_is_found_alone_or_in_a_folder_without_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert gguf_file(file) == gguf_file(tmp_path) == file
    (tmp_path / "model.safetensors").touch()
    assert gguf_file(tmp_path) is None
    assert gguf_file(tmp_path / "model.safetensors") is None


def test_of_many_at_once_one_converts_and_all_get_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    conversions: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        conversions.append(file)
        folder.mkdir()
        time.sleep(0.2)

    monkeypatch.setattr(gguf, "_convert", convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(converted_copy(file, tmp_path / "cache"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert len(set(found)) == 1
    assert found[0].is_dir()
    file.write_bytes(b"another")
    assert converted_copy(file, tmp_path / "cache") != found[0]


def test_a_conversion_that_breaks_off_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")

    def broken(file: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf, "_convert", broken)
    with pytest.raises(OSError, match="space"):
        converted_copy(file, tmp_path / "cache")
    monkeypatch.setattr(gguf, "_convert", lambda file, folder: folder.mkdir())
    assert converted_copy(file, tmp_path / "cache").is_dir()
