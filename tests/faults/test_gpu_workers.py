"""One worker a GPU: real processes with the echo engine, on GPUs that only a false ``nvidia-smi`` knows of."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_launcher import FIVE_SECONDS, IN_A_GROUP, LAUNCH, READY, TIMED, lives, python
from workers import START_TIMEOUT_S, WORKER, WorkerProcess, a_process, wait_until

from promptmill import Client, TaskStatus

#: What ``nvidia-smi -L`` says of two GPUs.
NVIDIA_SMI = """#!/bin/sh
echo 'GPU 0: Some GPU (UUID: GPU-00000000-aaaa)'
echo 'GPU 1: Some GPU (UUID: GPU-11111111-bbbb)'
"""

#: Launches what follows on the command line as two workers, "gpu0" and "gpu1", which find their name in NAME.
LAUNCH_TWO = LAUNCH.replace("os.environ,", "os.environ, {'gpu0': {'NAME': 'gpu0'}, 'gpu1': {'NAME': 'gpu1'}},")


@pytest.fixture
def path_with_gpus(tmp_path: Path) -> str:
    """A PATH on which two GPUs are found."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@contextmanager
def workers_on_gpus(
    broker_url: str, log: Path, path: str, *options: str, as_shell: bool = False
) -> Iterator[WorkerProcess]:
    """A launcher with a worker on each of two GPUs, which take tasks."""
    command = [*(IN_A_GROUP if as_shell else []), *WORKER, "--worker-name", "box", *options]
    with a_process(command, log, PROMPTMILL_BROKER_URL=broker_url, PROMPTMILL_GPUS="all", PATH=path) as launcher:
        wait_until(lambda: len(ready(launcher)) == 2, "both are ready", START_TIMEOUT_S)
        yield launcher


def ready(launcher: WorkerProcess) -> list[tuple[str, int]]:
    """GPU and process id of each worker that took tasks, as the prefixed log tells."""
    found = re.findall(r"^\[(gpu\d)\] .* echo-(\d+)@.* ready\.", launcher.log, re.MULTILINE)
    return [(gpu, int(pid)) for gpu, pid in found]


@contextmanager
def two_launched(log: Path, program: str, *arguments: str, setup: str = "") -> Iterator[WorkerProcess]:
    command = [sys.executable, "-c", setup + LAUNCH_TWO, "0.1", "60", "300", *python(program), *arguments]
    with a_process(command, log) as launcher:
        yield launcher


def test_each_gpu_has_a_worker_of_its_own_and_one_that_is_killed_comes_back_while_the_other_goes_on(
    broker_url: str, tmp_path: Path, path_with_gpus: str
) -> None:
    with (
        Client(broker_url, model="echo") as client,
        workers_on_gpus(broker_url, tmp_path / "log", path_with_gpus, *TIMED) as launcher,
    ):
        assert {worker.name for worker in client.fleet().workers} == {"box-gpu0", "box-gpu1"}
        first = dict(ready(launcher))
        if sys.platform == "linux":
            environments = {gpu: Path(f"/proc/{pid}/environ").read_text().split("\0") for gpu, pid in first.items()}
            assert "CUDA_VISIBLE_DEVICES=GPU-00000000-aaaa" in environments["gpu0"]
            assert "CUDA_VISIBLE_DEVICES=GPU-11111111-bbbb" in environments["gpu1"]
        os.kill(first["gpu0"], signal.SIGKILL)
        wait_until(lambda: len(ready(launcher)) == 3, "the killed one is back", START_TIMEOUT_S)
        assert ready(launcher)[2][0] == "gpu0"
        assert lives(first["gpu1"])
        told = [line for line in launcher.log.splitlines() if "/Launcher]" in line]
        assert [line.partition("/Launcher] ")[2] for line in told] == [
            "[gpu0] the worker ended (SIGKILL); another starts in 1 s"
        ]
        assert all(re.match(r"\[gpu[01]\] ", line) for line in launcher.log.splitlines() if line not in told)
        tasks = [client.submit(FIVE_SECONDS) for _ in range(8)]
        wait_until(lambda: all(task.status() is TaskStatus.RUNNING for task in tasks), "they run")
        launcher.send(signal.SIGTERM)
        assert launcher.wait(30) == 0
        assert {task.status() for task in tasks} == {TaskStatus.SUCCEEDED}
        assert not any(lives(pid) for _, pid in ready(launcher))


def test_lines_of_several_workers_as_json_say_whose_they_are(
    broker_url: str, tmp_path: Path, path_with_gpus: str
) -> None:
    environment = {"PROMPTMILL_BROKER_URL": broker_url, "PROMPTMILL_GPUS": "all", "PATH": path_with_gpus}
    command = [*WORKER, "--worker-name", "box", "--log-format", "json"]
    with a_process(command, tmp_path / "log", **environment) as launcher:

        def told() -> set[str]:
            lines = [json.loads(line) for line in launcher.log.splitlines()]
            return {line["worker"] for line in lines if line["message"].endswith("ready.")}

        wait_until(lambda: told() == {"box-gpu0", "box-gpu1"}, "both are ready", START_TIMEOUT_S)


def test_ctrl_c_reaches_all_workers_once_and_a_second_one_has_them_put_back_what_runs(
    broker_url: str, tmp_path: Path, path_with_gpus: str
) -> None:
    options = (*TIMED, "--grace-s", "600", "--max-in-flight", "1")
    with (
        Client(broker_url, model="echo") as client,
        workers_on_gpus(broker_url, tmp_path / "log", path_with_gpus, *options, as_shell=True) as launcher,
    ):
        tasks = [client.submit("word " * 3000) for _ in range(2)]
        wait_until(lambda: all(task.status() is TaskStatus.RUNNING for task in tasks), "both run", 30)
        os.killpg(launcher.pid, signal.SIGINT)
        wait_until(lambda: launcher.log.count("Warm shutdown") == 2, "the first has arrived")
        assert "put 1 prompts" not in launcher.log
        os.killpg(launcher.pid, signal.SIGINT)
        wait_until(lambda: launcher.log.count("put 1 prompts") == 2, "both have put back theirs", 30)


def test_workers_that_never_took_tasks_are_not_started_again(tmp_path: Path) -> None:
    with two_launched(tmp_path / "log", "import sys; print('no such model'); sys.exit(1)") as launcher:
        assert launcher.wait(30) == 1
    lines = launcher.log.splitlines()
    assert sorted(line for line in lines if line.startswith("[")) == ["[gpu0] no such model", "[gpu1] no such model"]
    assert "another starts in" not in launcher.log


def test_a_worker_that_can_not_start_is_tried_again_once_another_takes_tasks(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys, time\n"
        "failed, name = pathlib.Path(sys.argv[1]), os.environ['NAME']\n"
        "if name == 'gpu0' and not failed.exists(): failed.touch(); sys.exit(1)\n"
        "while 'before any took tasks' not in failed.with_name('log').read_text(): time.sleep(0.02)\n"
    ) + READY.replace("os.write", "print(name, 'is ready', flush=True)\nos.write")
    with two_launched(tmp_path / "log", f"{program}\ntime.sleep(600)", str(tmp_path / "failed")) as launcher:
        wait_until(lambda: "[gpu0] gpu0 is ready" in launcher.log, "it is tried again", 30)
    log = launcher.log
    waits = log.index("[gpu0] the worker ended (exit code 1) before any took tasks; another starts once one does")
    again = log.index("[gpu0] the worker ended (exit code 1); another starts in 0.1 s")
    assert waits < again < log.index("[gpu0] gpu0 is ready")
    assert log.count("[gpu1] gpu1 is ready") == 1


def test_a_worker_that_ends_well_leaves_the_others_alone_and_the_launcher_ends_with_the_last(tmp_path: Path) -> None:
    program = READY + (
        "ended = pathlib.Path(sys.argv[1])\n"
        "if os.environ['NAME'] == 'gpu0': ended.touch(); sys.exit(0)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\n"
    )
    with two_launched(tmp_path / "log", program, str(tmp_path / "ended"), str(tmp_path / "go")) as launcher:
        wait_until(lambda: "[gpu0] the worker has ended well; none is started again" in launcher.log, "it ended", 30)
        (tmp_path / "go").touch()
        assert launcher.wait(30) == 0


def test_each_worker_has_pauses_of_its_own_and_all_of_them_end_when_asked(tmp_path: Path) -> None:
    program = READY + "sys.exit(3 if os.environ['NAME'] == 'gpu1' else time.sleep(600))\n"
    with two_launched(tmp_path / "log", program) as launcher:
        wait_until(lambda: launcher.log.count("[gpu1] the worker ended (exit code 3)") >= 4, "it starts again", 30)
        launcher.send(signal.SIGTERM)
        assert launcher.wait(30) == 128 + signal.SIGTERM  # gpu0's, which does not know of SIGTERM
    assert re.findall(r"\[gpu1\] .* starts in ([\d.]+) s", launcher.log)[:4] == ["0.1", "0.2", "0.4", "0.8"]
    assert "[gpu0]" not in launcher.log


def test_what_a_worker_wrote_last_is_passed_on_before_the_launcher_ends(tmp_path: Path) -> None:
    slow_to_read = (
        "import time\n"
        "from promptmill_worker import seat\n"
        "pass_on = seat._pass_on\n"
        "seat._pass_on = lambda *given: (time.sleep(0.5), pass_on(*given))\n"
    )
    program = "import os, signal\nos.write(2, b'one\\n\\xfftwo'); os.kill(os.getpid(), signal.SIGKILL)"
    with two_launched(tmp_path / "log", program, setup=slow_to_read) as launcher:
        assert launcher.wait(30) == 137
    lines = (tmp_path / "log").read_bytes().splitlines()
    for line in (b"[gpu0] one", b"[gpu1] one", b"[gpu0] \xfftwo", b"[gpu1] \xfftwo"):
        assert lines.count(line) == 1


def test_a_line_without_end_is_passed_on_in_parts(tmp_path: Path) -> None:
    with two_launched(tmp_path / "log", "import os; os.write(2, b'-' * 150_000)") as launcher:
        assert launcher.wait(30) == 0
    lines = [line for line in launcher.log.splitlines() if line.startswith("[gpu0] -")]
    assert [len(line.removeprefix("[gpu0] ")) for line in lines] == [65_536, 65_536, 150_000 - 2 * 65_536]


def test_a_system_without_room_for_a_process_is_asked_again(tmp_path: Path) -> None:
    setup = (
        "import subprocess\n"
        "start, starts = subprocess.Popen.__init__, []\n"
        "def refused_once(*arguments, **options):\n"
        "    starts.append(1)\n"
        "    if len(starts) == 3: raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    start(*arguments, **options)\n"
        "subprocess.Popen.__init__ = refused_once\n"
    )
    program = READY + "time.sleep(1)\nsys.exit(3 if os.environ['NAME'] == 'gpu0' else time.sleep(600))\n"
    with two_launched(tmp_path / "log", program, setup=setup) as launcher:
        wait_until(lambda: launcher.log.count("the worker ended (exit code 3)") >= 2, "it runs again", 30)
        assert "[gpu0] no worker can be started: Resource temporarily unavailable" in launcher.log


@pytest.mark.parametrize(
    ("options", "path", "message"),
    [
        (["all"], "", "gpus: there is no GPU here: leave --gpus out, and the CPU is used"),
        (["0,9"], "gpus", "gpus: GPU 9 is not there; these are: 0, 1"),
        (["all", "--device", "cpu"], "gpus", "device: 'cpu' and gpus don't go together"),
        (["all", "--no-restart"], "gpus", "gpus and no-restart don't go together"),
    ],
)
def test_the_command_says_in_one_sentence_what_does_not_go(
    path_with_gpus: str, options: list[str], path: str, message: str
) -> None:
    environment = {**os.environ, "PATH": path_with_gpus if path else "/nowhere"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run([*WORKER, "--gpus", *options], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"promptmill: {message}")
    assert done.stderr.count("\n") == 1
