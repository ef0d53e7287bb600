"""The process between an owner and a child that must not outlive it: an embedded broker's server, a local worker.

Why a process of its own: the owner may be killed with SIGKILL, and then nobody in it can clean up. A parent-death
signal from the owner straight to the child (Linux only) would be sent when the *thread* that started the child ends,
and to set it code has to run between fork and exec, which isn't safe beside other threads. This process has one
thread, works alike on Linux and macOS, and also removes the owner's temporary folder.

It notices the owner's end twice: a pipe on its standard input closes at once, and its own parent changes, also
where a forked child of the owner still holds the pipe's other end. As the child's parent it can't be fooled by a
process id that was used again.

Run by path, with the standard library only: importing promptmill would take longer than starting a server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: How often to look whether the owner and the child still live, in seconds.
LOOK_EVERY_S = 0.2

PR_SET_PDEATHSIG = 1


def start_watched(
    command: Sequence[str], stop_timeout_s: float, folder: Path | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """For the owner: start ``command`` under a watchdog.

    Args:
        command: The child's command line.
        stop_timeout_s: How long it may take to end after SIGTERM, in seconds; then it is killed.
        folder: Removed when the child has ended.
        options: Of ``subprocess.Popen``.

    Returns:
        The watchdog, whose exit code is the child's; ``ask_to_stop`` ends both.
    """
    # Isolated and without site-packages: it starts in 50 ms and imports nothing of ours.
    watchdog = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(stop_timeout_s), str(folder or "")]
    return subprocess.Popen(
        [*watchdog, *command],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the owner; the child goes on until it is done with it
        **options,
    )


def ask_to_stop(watchdog: subprocess.Popen[bytes]) -> None:
    """For the owner: end the child through its watchdog, and wait until both are gone."""
    assert watchdog.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        watchdog.stdin.write(b"\n")  # closing alone says nothing while a forked child holds the pipe open
        watchdog.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        watchdog.stdin.close()
    watchdog.wait()


def main(owner: int, stop_timeout_s: float, folder: str, command: list[str]) -> int:
    """Run ``command`` until it ends, the owner is gone, or the owner or a SIGTERM asks to stop.

    Args:
        owner: Process id of the owner, our parent.
        stop_timeout_s: How long the child may take to end after SIGTERM, in seconds.
        folder: Removed at the end, unless it is "".
        command: The child's command line.

    Returns:
        The child's exit code; 128 + n if signal n ended it, as a shell says it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    child = None
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            close_fds=False,  # a server inherits the lock on its data directory
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        while child.poll() is None and os.getppid() == owner:
            if select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
                break
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if child is not None:
            _end(child, stop_timeout_s)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes], stop_timeout_s: float) -> None:
    child.terminate()
    try:
        child.wait(stop_timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_with_parent() -> None:
    """On Linux the child is not left alone even if this process is killed with SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
