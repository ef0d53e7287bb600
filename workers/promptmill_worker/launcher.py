"""The process above workers, which starts another when one dies.

Nothing of Celery and torch is imported here: the launcher is there as long as its workers, and should not weigh.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence

from promptmill_worker.seat import Seat

__all__ = ["Launcher"]

log = logging.getLogger(__name__)

#: What is passed on to the workers.
FORWARDED = (signal.SIGTERM, signal.SIGINT)


class Launcher:
    """Runs one worker, or several of one command line, and another in the place of each that dies.

    It takes the process's signals over, and all of its children: for the main thread of a process that does nothing
    else, and may be the first one of a container.

    Args:
        command: The workers' command line; ``--launcher-fd N`` is added to it.
        environment: The workers' environment.
        several: For several workers, each one's name, and what its environment has besides.
        prefixed: Whether each line of several workers begins with the name of its worker.
        first_pause_s: The pause before a restart, in seconds; before each further one it is twice as long.
        longest_pause_s: The longest pause, in seconds.
        settled_s: After a worker that lived this long, in seconds, the pauses begin anew.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        several: Mapping[str, Mapping[str, str]] | None = None,
        *,
        prefixed: bool = True,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        settled_s: float = 300.0,
    ) -> None:
        self._seats = [
            Seat(command, {**environment, **own}, name, prefixed=prefixed)
            for name, own in (several or {"": {}}).items()
        ]
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._settled_s = settled_s
        #: Whether any worker took tasks: from then on the settings are right, and what ends a worker may pass.
        self._was_ready = False
        self._asked_to_end = False
        #: Read end of a pipe into which Python writes the number of each signal.
        self._signals = -1

    def run(self) -> int:
        """Runs workers until all have ended well, none ever took tasks, or SIGTERM or SIGINT asks to end.

        Returns:
            0 if all ended well, or were not there when we were asked to end; else the exit code of the first that did
            not: 128 + n if signal n ended it, as a shell says it.
        """
        self._listen()
        for seat in self._seats:
            self._start(seat)
        while any(seat.is_busy for seat in self._seats):
            self._wait()
            for seat in self._seats:
                if seat.due_at <= time.monotonic():
                    self._start(seat)
        for seat in self._seats:
            if seat.code < 0 and not self._was_ready and not self._asked_to_end:  # else it has said why itself
                how = seat.shown_code()
                log.error("%sthe worker ended (%s) before it took tasks; none is started again", seat.prefix, how)
        codes = (seat.code if seat.code >= 0 else 128 - seat.code for seat in self._seats)
        return next((code for code in codes if code), 0)

    def _listen(self) -> None:
        # A pipe, not work in handlers: it orders signals and ends of children, and none comes at a bad moment.
        self._signals, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def _start(self, seat: Seat) -> None:
        try:
            seat.start()
        except OSError as error:
            log.error("%sno worker can be started: %s", seat.prefix, error.strerror)
            self._on_end(seat, 1)

    def _wait(self) -> None:
        """Waits for a signal, an end, or for the time of the next start; and while that matters, for a first task."""
        due_at = min(seat.due_at for seat in self._seats)
        timeout_s = None if due_at == math.inf else max(0.0, due_at - time.monotonic())
        watched: list[int | socket.socket] = [self._signals]
        if not self._was_ready:
            watched += [seat.socket for seat in self._seats if seat.socket is not None]
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if len(readable) > (self._signals in readable):
            self._look_who_is_ready(self._seats)
        if self._signals in readable:
            self._on_signal(os.read(self._signals, 1)[0])

    def _look_who_is_ready(self, seats: Sequence[Seat]) -> None:
        if any([seat.hears_ready() for seat in seats]) and not self._was_ready:  # noqa: C419 - hear all of them
            self._was_ready = True
            for seat in self._seats:
                if not seat.is_busy and seat.code != 0:
                    self._start_later(seat)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for process_id, code in _reap().items():
                for seat in self._seats:
                    if seat.process_id == process_id:
                        self._on_end(seat, code)
            return
        self._asked_to_end = True
        for seat in self._seats:
            seat.retire()
            seat.send(number)

    def _on_end(self, seat: Seat, code: int) -> None:
        self._look_who_is_ready([seat])
        seat.end(code)
        others_go_on = any(other.is_busy for other in self._seats)
        if self._asked_to_end:
            return
        if self._was_ready and code != 0:
            self._start_later(seat)
        elif code == 0 and others_go_on:
            log.warning("%sthe worker has ended well; none is started again", seat.prefix)
        elif others_go_on:
            how = seat.shown_code()
            log.warning("%sthe worker ended (%s) before any took tasks; another starts once one does", seat.prefix, how)

    def _start_later(self, seat: Seat) -> None:
        lived_s = time.monotonic() - seat.started_at
        if seat.pause_s == 0 or lived_s >= self._settled_s:
            pause_s = self._first_pause_s
        else:
            pause_s = min(2 * seat.pause_s, self._longest_pause_s)
        log.warning("%sthe worker ended (%s); another starts in %g s", seat.prefix, seat.shown_code(), pause_s)
        seat.pause(pause_s)


def _reap() -> dict[int, int]:
    """Exit codes by process id of all children that have ended: as a container's first process we inherit orphans."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):  # none is left
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended
