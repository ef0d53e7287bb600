"""Threads and memory within the limits of containers and batch systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from promptmill_worker import cores
from promptmill_worker.cgroup import cpu_quota, memory_left_bytes
from promptmill_worker.hardware import cpu_threads
from promptmill_worker.settings import EngineSettings


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def test_the_tightest_limit_of_our_group_and_those_above_counts(tmp_path: Path) -> None:
    groups, membership = tmp_path / "cgroup", tmp_path / "membership"
    write(membership, "0::/slice/worker\n")
    write(groups / "slice/worker/cpu.max", "max 100000\n")
    write(groups / "slice/cpu.max", "250000 100000\n")
    write(groups / "cpu.max", "800000 100000\n")
    write(groups / "slice/worker/memory.max", "1000\n")
    write(groups / "slice/worker/memory.current", "900\n")
    write(groups / "slice/worker/memory.stat", "anon 500\ninactive_file 300\n")
    write(groups / "slice/memory.max", "max\n")
    assert cpu_quota(groups, membership) == 2.5
    assert memory_left_bytes(groups, membership) == 400


def test_version_1_counts_too_and_a_path_of_the_host_leaves_the_containers_root(tmp_path: Path) -> None:
    groups, membership = tmp_path / "cgroup", tmp_path / "membership"
    write(membership, "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    write(groups / "cpu,cpuacct/cpu.cfs_quota_us", "150000\n")
    write(groups / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(groups / "memory/memory.limit_in_bytes", "5000\n")
    write(groups / "memory/memory.usage_in_bytes", "4000\n")
    write(groups / "memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n")
    assert cpu_quota(groups, membership) == 1.5
    assert memory_left_bytes(groups, membership) == 1500
    write(groups / "cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert cpu_quota(groups, membership) is None


def test_without_limits_or_without_cgroups_there_are_none(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") is None
    assert memory_left_bytes(tmp_path, tmp_path / "none") is None
    write(tmp_path / "membership", "0::/\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") is None
    assert memory_left_bytes(tmp_path, tmp_path / "membership") is None


def test_threads_are_those_set_else_omps_else_the_cores_and_their_time_that_the_process_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PROMPTMILL_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    settings = EngineSettings.read(model="demo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, threads in [(None, 7), (16.0, 7), (3.9, 2), (0.5, 1)]:
        monkeypatch.setattr(cores, "cpu_quota", lambda quota=quota: quota)
        assert cpu_threads(settings) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_threads(settings) == 5
    assert cpu_threads(EngineSettings.read(model="demo", threads=2)) == 2
