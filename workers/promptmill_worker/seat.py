"""Where one worker runs under a launcher, and another in its place when it dies.

The worker runs in a session of its own, so that a terminal's Ctrl-C reaches it once, through the launcher. The two hold
the ends of one socket. The worker writes into its end when it takes tasks, and reads from it what never comes: the read
ends when the launcher does, also by SIGKILL, and then the worker ends too. (A parent-death signal does that on Linux
only.)
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

__all__ = ["Seat"]

#: How long the last lines of a worker that has ended are waited for, in seconds: a process that it forked may live on
#: and hold the pipe open.
LAST_LINES_S = 1.0

#: A longer line is passed on in parts, in bytes.
LONGEST_LINE = 65_536


class Seat:
    """One worker at a time. For the launcher's thread.

    Args:
        command: The worker's command line; ``--launcher-fd N`` is added to it.
        environment: The worker's environment.
        name: What lines about the worker begin with, in brackets.
        prefixed: Whether each line that the worker writes begins so, too. Else it writes where we do, and not through
            us.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], name: str = "", *, prefixed: bool = True
    ) -> None:
        self.prefix = f"[{name}] " if name else ""
        self._prefixed = prefixed and name != ""
        self._command = command
        self._environment = environment
        self._worker: subprocess.Popen[bytes] | None = None
        self._lines: threading.Thread | None = None
        #: Our end of the socket, until the worker or we close it.
        self.socket: socket.socket | None = None
        #: When the worker was started, by the monotonic clock.
        self.started_at = 0.0
        #: When another one starts, by the monotonic clock.
        self.due_at = math.inf
        #: How the last worker ended: its exit code, or -n if signal n ended it; 0 while none has.
        self.code = 0
        #: The last pause before a restart, in seconds.
        self.pause_s = 0.0

    @property
    def process_id(self) -> int | None:
        """Of the worker that runs; it waits to be reaped at worst, so that the id is nobody else's."""
        return None if self._worker is None else self._worker.pid

    @property
    def is_busy(self) -> bool:
        """Whether a worker runs or is about to."""
        return self._worker is not None or self.due_at < math.inf

    def start(self) -> None:
        """Starts a worker.

        Raises:
            OSError: the system has no memory or no process for it.
        """
        self.started_at, self.due_at = time.monotonic(), math.inf
        self.socket, theirs = socket.socketpair()
        with theirs:
            worker = subprocess.Popen(
                [*self._command, "--launcher-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._prefixed else None,
                stderr=subprocess.STDOUT if self._prefixed else None,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._worker = worker
        if worker.stdout is not None:
            # A thread: a terminal that does not take our lines must not keep us from what else there is to do.
            self._lines = threading.Thread(target=_pass_on, args=(worker.stdout, self.prefix.encode()), daemon=True)
            self._lines.start()

    def send(self, number: int) -> None:
        """Passes a signal on to the worker, if one runs."""
        if self._worker is not None:
            os.kill(self._worker.pid, number)

    def hears_ready(self) -> bool:
        """Whether the worker has said, since the last time, that it takes tasks."""
        if self.socket is None:
            return False
        try:
            said = self.socket.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # it has not read what we never write
            said = b""
        if not said:
            self.socket.close()
            self.socket = None
        return said != b""

    def end(self, code: int) -> None:
        """Takes note that the worker has ended, or could not be started; ``hears_ready`` was called before."""
        self.code = code
        if self._worker is not None:
            self._worker.returncode = code  # it is reaped already
            self._worker = None
        if self._lines is not None:
            self._lines.join(LAST_LINES_S)
            self._lines = None
        if self.socket is not None:  # it forked a process, which lives and holds the other end open
            self.socket.close()
            self.socket = None

    def pause(self, pause_s: float) -> None:
        """Has another worker be due in ``pause_s`` seconds."""
        self.pause_s = pause_s
        self.due_at = time.monotonic() + pause_s

    def retire(self) -> None:
        """No worker is due any more; what ended the one before is forgotten, if none runs."""
        self.due_at = math.inf
        self.code = 0

    def shown_code(self) -> str:
        """How the last worker ended, for people."""
        names = {int(number): number.name for number in signal.Signals}  # the real-time signals between two have none
        return f"exit code {self.code}" if self.code >= 0 else names.get(-self.code, f"signal {-self.code}")


def _pass_on(lines: IO[bytes], prefix: bytes) -> None:
    with lines:
        while line := lines.readline(LONGEST_LINE):
            with contextlib.suppress(OSError):  # nobody reads ours any more; the worker must not wait for that
                sys.stderr.buffer.write(prefix + line.removesuffix(b"\n") + b"\n")
                sys.stderr.buffer.flush()
