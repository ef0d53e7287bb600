"""Which GPUs there are, and which are asked for; ``nvidia-smi`` is a program that says what the tests tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptmill.errors import InvalidSettingError
from promptmill_worker import gpu_workers
from promptmill_worker.gpu_workers import workers_of
from promptmill_worker.gpus import Gpu, pick_gpus
from promptmill_worker.settings import WorkerSettings

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb2222-0000-0000-0000-000000000000)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc3333-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-dddd4444-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb2222-0000-0000-0000-000000000000)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, first on the PATH; two GPUs until something else is written to it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{TWO}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def says(program: Path, text: str, code: int = 0) -> None:
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")


def numbers(asked: str, visible: str | None = None) -> list[str]:
    return [gpu.number for gpu in pick_gpus(asked, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})]


def test_gpus_are_named_so_that_no_order_of_counting_confuses_them(nvidia_smi: Path) -> None:
    both = [
        Gpu("0", 0, "GPU-aaaa1111-0000-0000-0000-000000000000"),
        Gpu("1", 1, "GPU-bbbb2222-0000-0000-0000-000000000000"),
    ]
    assert pick_gpus("all", {}) == pick_gpus("0,1", {}) == both
    assert pick_gpus("1,0", {}) == both[::-1]


def test_the_parts_of_a_divided_gpu_take_its_place(nvidia_smi: Path) -> None:
    says(nvidia_smi, DIVIDED)
    found = pick_gpus("all", {})
    assert [(gpu.number, gpu.position, gpu.device[:8]) for gpu in found] == [
        ("0:0", 0, "MIG-cccc"),
        ("0:1", 1, "MIG-dddd"),
        ("1", 2, "GPU-bbbb"),
    ]
    assert numbers("0:1,1") == ["0:1", "1"]
    with pytest.raises(InvalidSettingError, match=r"GPU 0 is not there; these are: 0:0, 0:1, 1$"):
        pick_gpus("0", {})


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("GPU-bbbb", ["1"]),
        ("GPU-bbbb2222-0000-0000-0000-000000000000,0", ["1", "0"]),
        ("1,-1,0", ["1"]),
        ("1,7,0", ["1"]),
    ],
)
def test_cuda_visible_devices_bounds_what_is_there_as_it_does_in_cuda(
    nvidia_smi: Path, visible: str, seen: list[str]
) -> None:
    assert numbers("all", visible) == seen


def test_a_number_in_cuda_visible_devices_is_handed_on_as_it_stands(nvidia_smi: Path) -> None:
    assert [gpu.device for gpu in pick_gpus("all", {"CUDA_VISIBLE_DEVICES": "1,GPU-aaaa"})] == [
        "1",
        "GPU-aaaa1111-0000-0000-0000-000000000000",
    ]


def test_cuda_visible_devices_may_name_parts_or_all_parts_of_a_gpu(nvidia_smi: Path) -> None:
    says(nvidia_smi, DIVIDED)
    assert numbers("all", "MIG-dddd4444-0000-0000-0000-000000000000") == ["0:1"]
    assert numbers("all", "0") == ["0:0", "0:1"]


@pytest.mark.parametrize("asked", ["", "some", "0,", "0;1", "-1", "cuda:0", "0 1"])
def test_what_names_no_gpus_is_refused(nvidia_smi: Path, asked: str) -> None:
    with pytest.raises(InvalidSettingError, match="is not allowed: it is all, or numbers like 0,1"):
        pick_gpus(asked, {})


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(nvidia_smi: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"GPU 9 is not there; these are: 0, 1$"):
        pick_gpus("0,9", {})
    with pytest.raises(InvalidSettingError, match=r"GPU 0 is not there within CUDA_VISIBLE_DEVICES=1; this is: 1$"):
        pick_gpus("0", {"CUDA_VISIBLE_DEVICES": "1"})
    with pytest.raises(InvalidSettingError, match="0,1,0 names GPU 0 twice"):
        pick_gpus("0,1,0", {})


@pytest.mark.parametrize("asked", ["all", "0"])
def test_without_a_gpu_it_is_said(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    with pytest.raises(InvalidSettingError, match="no GPU here within CUDA_VISIBLE_DEVICES=: leave --gpus out"):
        pick_gpus(asked, {"CUDA_VISIBLE_DEVICES": ""})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidSettingError, match="there is no GPU here: leave --gpus out"):
        pick_gpus(asked, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})


def test_a_driver_that_fails_says_why(nvidia_smi: Path) -> None:
    says(nvidia_smi, "NVIDIA-SMI has failed because it couldn't communicate\nwith the NVIDIA driver.\n", code=9)
    with pytest.raises(InvalidSettingError, match=r"exit code 9: NVIDIA-SMI has failed .* with the NVIDIA driver"):
        pick_gpus("all", {})


def settings(**options: object) -> tuple[WorkerSettings, dict[str, object]]:
    return WorkerSettings.read({}, model="m", **options), {"model": "m", **options}


def test_workers_differ_in_gpu_name_port_and_share_the_cores(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_workers, "usable_cores", lambda: 9)
    monkeypatch.setattr(gpu_workers.socket, "gethostname", lambda: "box")
    workers = workers_of("0,1", *settings(metrics_port=9464))
    assert workers["gpu1"] == {
        "CUDA_VISIBLE_DEVICES": "GPU-bbbb2222-0000-0000-0000-000000000000",
        "PROMPTMILL_DEVICE": "cuda",
        "PROMPTMILL_WORKER_NAME": "box-gpu1",
        "PROMPTMILL_THREADS": "4",
        "PROMPTMILL_METRICS_PORT": "9465",
    }
    assert [workers[name]["PROMPTMILL_METRICS_PORT"] for name in workers] == ["9464", "9465"]
    named = workers_of("1", *settings(threads=3, worker_name="mine"))["gpu1"]
    assert (named["PROMPTMILL_WORKER_NAME"], named["PROMPTMILL_THREADS"]) == ("mine-gpu1", "3")
    assert "PROMPTMILL_METRICS_PORT" not in named
    monkeypatch.setattr(gpu_workers, "usable_cores", lambda: 1)
    assert workers_of("all", *settings())["gpu0"]["PROMPTMILL_THREADS"] == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "device: 'cpu' and gpus don't go together"),
        ({"device": "cuda:1"}, "device: 'cuda:1' and gpus don't go together"),
        ({"metrics_port": 65535}, "metrics_port: 65536 is not allowed"),
        ({"worker_name": "n" * 126}, "worker_name"),
    ],
)
def test_settings_that_do_not_go_with_gpus_are_refused(
    nvidia_smi: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        workers_of("all", *settings(**options))
