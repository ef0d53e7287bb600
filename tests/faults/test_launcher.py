"""The launcher: what it starts again, what it doesn't, and that nothing is left of its worker when it is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workers import WORKER, WorkerProcess, a_process, a_worker, wait_until

from promptmill import Client, TaskStatus
from promptmill_worker.echo import FAULT_DIE, FAULT_HANG, FAULT_KILL

#: At 10 words a second: five seconds.
FIVE_SECONDS = "word " * 50
TIMED = ("--echo-tokens-per-s", "10")

#: Has the command line that follows it run by a launcher of these times, in seconds.
LAUNCH = """
import logging, os, sys
from promptmill_worker.launcher import Launcher
logging.basicConfig()
first_pause_s, longest_pause_s, settled_s = map(float, sys.argv[1:4])
launcher = Launcher(
    sys.argv[4:], os.environ, first_pause_s=first_pause_s, longest_pause_s=longest_pause_s, settled_s=settled_s
)
sys.exit(launcher.run())
"""

#: A worker that takes tasks, and then does what follows.
READY = """
import os, pathlib, signal, subprocess, sys, time
os.write(int(sys.argv[-1]), b"+")
"""

#: Has the command line that follows run as a shell does that has a terminal: in a process group of its own.
IN_A_GROUP = [sys.executable, "-c", "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"]

Launched = Iterator[WorkerProcess]


@contextmanager
def launched(
    log: Path, *command: str, first_pause_s: float = 0.1, longest_pause_s: float = 60.0, settled_s: float = 300.0,
    setup: str = "", **environment: str,
) -> Launched:  # fmt: skip
    times = map(str, (first_pause_s, longest_pause_s, settled_s))
    with a_process([sys.executable, "-c", setup + LAUNCH, *times, *command], log, **environment) as process:
        yield process


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def worker_pids(launcher: WorkerProcess) -> list[int]:
    """Process ids of the workers that were started, in order, as their logs tell."""
    return [int(found) for found in re.findall(r" serves .*\n(?:.*\n)*?.* echo-(\d+)@.* ready\.", launcher.log)]


def lives(process_id: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True).stdout
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize(
    ("fault", "ended"), [(FAULT_DIE, "exit code 1"), (FAULT_KILL, "SIGKILL"), (FAULT_HANG, "exit code 1")]
)
def test_a_worker_that_dies_is_started_again_with_one_line_in_the_log(
    broker_url: str, tmp_path: Path, fault: str, ended: str
) -> None:
    with (
        a_worker(broker_url, tmp_path / "log", "--engine-stall-s", "2", restart=True) as launcher,
        Client(broker_url, model="echo") as client,
    ):
        before = client.generate("before").worker
        killer = client.submit(fault)
        wait_until(lambda: "/Launcher]" in launcher.log, "it dies", 30)
        killer.cancel()
        assert client.submit("after").result(timeout_s=60).worker != before
        [line] = [line for line in launcher.log.splitlines() if "Launcher]" in line]
        assert line.endswith(f"the worker ended ({ended}); another starts in 1 s")


def test_pauses_grow_to_their_limit_and_begin_anew_after_a_long_life(tmp_path: Path) -> None:
    program = READY + (
        "starts = pathlib.Path(sys.argv[1])\n"
        "starts.write_text(starts.read_text() + '+' if starts.exists() else '+')\n"
        "number = len(starts.read_text())\n"
        "time.sleep(3 if number == 5 else 0)\n"
        "sys.exit(0 if number == 7 else 3)\n"
    )
    command = [*python(program), str(tmp_path / "starts")]
    with launched(tmp_path / "log", *command, first_pause_s=0.1, longest_pause_s=0.4, settled_s=3) as launcher:
        assert launcher.wait(60) == 0
    pauses = re.findall(r"exit code 3\); another starts in ([\d.]+) s", launcher.log)
    assert pauses == ["0.1", "0.2", "0.4", "0.4", "0.1", "0.2"]


def test_a_worker_whose_password_is_refused_is_not_started_again(broker_url: str, tmp_path: Path) -> None:
    wrong = re.sub("//:.*@", "//:wrong@", broker_url)
    with a_worker(wrong, tmp_path / "log", ready=False, restart=True) as launcher:
        assert launcher.wait(60) == 1
    assert re.fullmatch("promptmill: .* refuses the user or the password.*\n", launcher.log)


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_a_worker_that_never_took_tasks_is_not_started_again(tmp_path: Path, ending: str, code: int) -> None:
    with launched(tmp_path / "log", *python(f"import os, signal, sys; {ending}")) as launcher:
        assert launcher.wait(30) == code
    assert launcher.log.count("\n") == ("the worker ended (SIGKILL) before it took tasks" in launcher.log) == (code > 2)


def test_once_a_worker_took_tasks_one_that_can_not_start_is_started_again(tmp_path: Path) -> None:
    program = READY.replace("os.write", "first = not os.path.exists(sys.argv[1])\nif first: os.write") + (
        "pathlib.Path(sys.argv[1]).touch()\nsys.exit(3 if first else 1)\n"
    )
    with launched(tmp_path / "log", *python(program), str(tmp_path / "started")) as launcher:
        wait_until(lambda: launcher.log.count("exit code 1); another starts") >= 2, "two more starts", 30)


def test_a_worker_that_ends_well_ends_its_launcher(broker_url: str, tmp_path: Path) -> None:
    with a_worker(broker_url, tmp_path / "log", restart=True) as launcher:
        os.kill(worker_pids(launcher)[0], signal.SIGTERM)
        assert launcher.wait(30) == 0


def test_a_terminated_launcher_has_its_worker_finish_what_it_can(broker_url: str, tmp_path: Path) -> None:
    with (
        Client(broker_url, model="echo") as client,
        a_worker(broker_url, tmp_path / "log", *TIMED, restart=True) as launcher,
    ):
        task = client.submit(FIVE_SECONDS)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        launcher.send(signal.SIGTERM)
        assert launcher.wait(30) == 0
        assert task.status() is TaskStatus.SUCCEEDED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_has_the_worker_put_back_what_still_runs(
    broker_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with (
        Client(broker_url, model="echo") as client,
        a_worker(broker_url, tmp_path / "log", *TIMED, "--grace-s", "600", restart=True) as launcher,
    ):
        task = client.submit("word " * 3000)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        launcher.send(number)
        wait_until(lambda: "Warm shutdown" in launcher.log, "the first has arrived")
        launcher.send(number)
        wait_until(lambda: "put 1 prompts" in launcher.log, "it is put back", 30)


def test_ctrl_c_in_a_terminal_reaches_the_worker_once(broker_url: str, tmp_path: Path) -> None:
    command = [*IN_A_GROUP, *WORKER, *TIMED]
    with (
        Client(broker_url, model="echo") as client,
        a_process(command, tmp_path / "log", PROMPTMILL_BROKER_URL=broker_url) as launcher,
    ):
        launcher.wait_until_ready()
        [worker] = worker_pids(launcher)
        assert os.getpgid(worker) != os.getpgid(launcher.pid)  # two signals in quick succession may look like one
        task = client.submit(FIVE_SECONDS)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        os.killpg(launcher.pid, signal.SIGINT)
        assert launcher.wait(30) == 1  # as Celery has it
        assert task.status() is TaskStatus.SUCCEEDED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pause_ends_at_once_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path / "log", *python(READY + "sys.exit(3)"), first_pause_s=600, longest_pause_s=600) as launcher:
        wait_until(lambda: "another starts in 600 s" in launcher.log, "it pauses", 30)
        launcher.send(number)
        assert launcher.wait(30) == 0


def test_a_signal_in_the_middle_of_a_start_is_not_lost(tmp_path: Path) -> None:
    setup = (
        "import os, signal, subprocess\n"
        "start = subprocess.Popen.__init__\n"
        "def interrupted(*arguments, **options):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    start(*arguments, **options)\n"
        "subprocess.Popen.__init__ = interrupted\n"
    )
    with launched(tmp_path / "log", *python("import time; time.sleep(600)"), setup=setup) as launcher:
        assert launcher.wait(30) == 128 + signal.SIGTERM
    assert launcher.log == ""


def test_a_worker_ends_at_once_when_its_launcher_is_killed_whatever_it_does(broker_url: str, tmp_path: Path) -> None:
    with (
        Client(broker_url, model="echo") as client,
        a_worker(broker_url, tmp_path / "log", *TIMED, restart=True) as launcher,
    ):
        [worker] = worker_pids(launcher)
        task = client.submit("word " * 6000)
        wait_until(lambda: task.status() is TaskStatus.RUNNING, "it runs")
        launcher.send(signal.SIGKILL)
        wait_until(lambda: not lives(worker), "the worker is gone", 10)
        assert "the launcher is gone" in launcher.log


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no process that inherits orphans but init")
def test_a_launcher_that_inherits_orphans_as_a_containers_first_process_does_reaps_them(tmp_path: Path) -> None:
    inherit = "import ctypes; ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER\n"
    command = python(READY + "subprocess.Popen(['sleep', '2'])\nsys.exit(3)")
    options = {"first_pause_s": 600.0, "longest_pause_s": 600.0, "setup": inherit}
    with launched(tmp_path / "log", *command, **options) as launcher:
        wait_until(lambda: "another starts in 600 s" in launcher.log, "it pauses", 30)
        children = ["pgrep", "-P", str(launcher.pid)]
        wait_until(lambda: not subprocess.run(children, capture_output=True).stdout, "no zombie is left", 30)


@pytest.mark.parametrize(("option", "environment"), [("--no-restart", {}), ("", {"PROMPTMILL_RESTART": "false"})])
def test_without_restart_the_process_is_the_worker(
    broker_url: str, tmp_path: Path, option: str, environment: dict[str, str]
) -> None:
    command = [*WORKER, *filter(None, [option])]
    with a_process(command, tmp_path / "log", PROMPTMILL_BROKER_URL=broker_url, **environment) as process:
        process.wait_until_ready()
        assert worker_pids(process) == [process.pid]


def test_the_launcher_loads_neither_torch_nor_celery() -> None:
    program = "import sys, promptmill.cli.main, promptmill_worker.command; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "promptmill_worker.launcher" in loaded
    assert {"torch", "transformers", "celery", "kombu"}.isdisjoint(loaded)
