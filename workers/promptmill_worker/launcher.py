"""The process above a worker, which starts another when the worker dies.

The worker runs in a session of its own, so that a terminal's Ctrl-C reaches it once, through here. The two hold the
ends of one socket. The worker writes into its end when it takes tasks, and reads from it what never comes: the read
ends when the launcher does, also by SIGKILL, and then the worker ends too. (A parent-death signal does that on Linux
only.)

Nothing of Celery and torch is imported here: the launcher is there as long as the worker, and should not weigh.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Launcher", "tie_to_launcher"]

log = logging.getLogger(__name__)

#: What is passed on to the worker.
FORWARDED = (signal.SIGTERM, signal.SIGINT)


class Launcher:
    """Runs one worker, and another in its place when it dies.

    It takes the process's signals over, and all of its children: for the main thread of a process that does nothing
    else, and may be the first one of a container.

    Args:
        command: The worker's command line; ``--launcher-fd N`` is added to it.
        environment: The worker's environment.
        first_pause_s: The pause before a restart, in seconds; before each further one it is twice as long.
        longest_pause_s: The longest pause, in seconds.
        settled_s: After a worker that lived this long, in seconds, the pauses begin anew.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        settled_s: float = 300.0,
    ) -> None:
        self._command = command
        self._environment = environment
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._settled_s = settled_s
        #: Whether any worker took tasks: from then on the settings are right, and what ends a worker may pass.
        self._was_ready = False
        self._asked_to_end = False
        #: Read end of a pipe into which Python writes the number of each signal.
        self._signals = -1

    def run(self) -> int:
        """Runs workers until one ends well, none ever took tasks, or SIGTERM or SIGINT asks to end.

        Returns:
            The exit code of the last worker; 128 + n if signal n ended it, as a shell says it; 0 if there was none left
            when we were asked to end.
        """
        self._listen()
        pause_s = self._first_pause_s
        while True:
            started_at = time.monotonic()
            code = self._run_worker()
            if code == 0 or self._asked_to_end:
                return _shell_code(code)
            if not self._was_ready:
                if code < 0:  # else it has said why itself
                    log.error("the worker ended (%s) before it took tasks; none is started again", _shown(code))
                return _shell_code(code)
            if time.monotonic() - started_at >= self._settled_s:
                pause_s = self._first_pause_s
            log.warning("the worker ended (%s); another starts in %g s", _shown(code), pause_s)
            if not self._pause(pause_s):
                return 0
            pause_s = min(2 * pause_s, self._longest_pause_s)

    def _listen(self) -> None:
        # A pipe, not work in handlers: it orders signals and ends of children, and none comes at a bad moment.
        self._signals, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def _next_signal(self, timeout_s: float | None = None) -> int | None:
        """Waits for a signal; None if there is none within ``timeout_s`` seconds."""
        ready, _, _ = select.select([self._signals], [], [], timeout_s)
        return os.read(self._signals, 1)[0] if ready else None

    def _run_worker(self) -> int:
        """Its exit code; -n if signal n ended it."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                worker = subprocess.Popen(
                    [*self._command, "--launcher-fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            worker.returncode = self._wait_for(worker.pid)
            with contextlib.suppress(BlockingIOError):  # it forked a process, which lives and holds its end open
                self._was_ready |= ours.recv(1, socket.MSG_DONTWAIT) != b""
        return worker.returncode

    def _wait_for(self, process_id: int) -> int:
        while True:
            number = self._next_signal()
            if number == signal.SIGCHLD:
                ended = _reap()
                if process_id in ended:
                    return ended[process_id]
            elif number is not None:
                self._asked_to_end = True
                os.kill(process_id, number)  # it lives, or waits to be reaped: the id is nobody else's

    def _pause(self, pause_s: float) -> bool:
        """Waits; returns False, at once, when asked to end."""
        over_at = time.monotonic() + pause_s
        while (left_s := over_at - time.monotonic()) > 0:
            number = self._next_signal(left_s)
            if number == signal.SIGCHLD:
                _reap()
            elif number is not None:
                return False
        return True


def tie_to_launcher(fd: int) -> Callable[..., None]:
    """For the worker: has this process end with its launcher, and at once, as what ends that is SIGKILL.

    Args:
        fd: Our end of the socket.

    Returns:
        To be called once tasks are taken; for a Celery signal, so that it takes any values and ignores them.
    """
    launcher = socket.socket(fileno=fd)
    launcher.set_inheritable(False)
    threading.Thread(target=_end_with, args=(launcher,), name="launcher watch", daemon=True).start()

    def tell_ready(**_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the thread sees that, too
            launcher.send(b"+")

    return tell_ready


def _end_with(launcher: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):  # it is gone and had not read what we wrote
        launcher.recv(1)
    log.warning("the launcher is gone; the worker ends")
    os.kill(os.getpid(), signal.SIGKILL)


def _reap() -> dict[int, int]:
    """Exit codes by process id of all children that have ended: as a container's first process we inherit orphans."""
    ended = {}
    with contextlib.suppress(ChildProcessError):  # none is left
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def _shown(code: int) -> str:
    names = {int(number): number.name for number in signal.Signals}  # the real-time signals between two have none
    return f"exit code {code}" if code >= 0 else names.get(-code, f"signal {-code}")


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code
