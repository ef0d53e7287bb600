"""The answers of one client, as they come."""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import redis

from promptmill.ledger import Ledger
from promptmill.outage import Outage
from promptmill.submission import Submission

__all__ = ["ReplyReader"]

log = logging.getLogger(__name__)

#: How long one read of the stream waits for news; after that the thread of a reader that nobody holds ends.
BLOCK_MS = 1000

#: The longest pause between two tries to read, in seconds.
LONGEST_PAUSE_S = 2.0

#: After how many seconds without news the broker is asked for a submission: the stream is a hint, the ledger the truth.
CHECK_AFTER_S = 5.0

#: How long after its deadline a submission should have been ended by a worker, in seconds.
DEADLINE_GRACE_S = 1.0

#: How long a submission waits before it is asked whether any worker serves its model.
WARN_AFTER_S = 10.0

#: The most submissions that are asked for at once.
CHECK_LIMIT = 200


class ReplyReader:
    """Reads a client's reply stream on a thread of its own and hands answers to their submissions.

    The stream may lose entries (a broker restarted), and so may the queue: every few seconds the reader asks the ledger
    for what is overdue, takes what is answered, and enters again what the broker has forgotten. A submission that
    nobody holds any more is forgotten here; its task goes on. The thread, too, ends when nobody holds the reader.

    Args:
        client: A redis-py client of its own, since it blocks.
        ledger: To ask for what is overdue.
        outage: Told whether the broker answers.
        streams: Makes the key of a reply stream; each process has its own, also a forked child.
        on_long_wait: Called with the queues of submissions that are overdue, so that it can be said why.
    """

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        outage: Outage,
        streams: Callable[[], str],
        on_long_wait: Callable[[set[str]], None],
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._outage = outage
        self._streams = streams
        self._on_long_wait = on_long_wait
        self._submissions: weakref.WeakValueDictionary[str, Submission] = weakref.WeakValueDictionary()
        self._stopped = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._process_id = os.getpid()
        self._stream = self._streams()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last_id = "0"
        self._checked_at = time.monotonic()

    @property
    def stream(self) -> str:
        """Key of this process's reply stream."""
        if self._process_id != os.getpid():  # a forked child: the thread stayed behind, the stream is the parent's
            self._begin()
        return self._stream

    def expect(self, submission: Submission) -> None:
        """Watches for the answers of ``submission``, from before it is entered. Starts the thread when first called.

        Raises:
            RuntimeError: the reader is closed.
        """
        with self._lock:
            if self._stopped.is_set():
                raise RuntimeError("this client is closed: make another")
            self._submissions[submission.entry.record_id] = submission
            if self._thread is None:
                of_this_reader = (weakref.ref(self), self._stopped)
                self._thread = threading.Thread(
                    target=_read_on, args=of_this_reader, name="promptmill replies", daemon=True
                )
                self._thread.start()

    def find(self, record_id: str) -> Submission | None:
        """The submission of a record, if this client has made it and still waits for it."""
        return self._submissions.get(record_id) if self._process_id == os.getpid() else None

    def close(self) -> None:
        """Ends the thread and all waiting, and deletes the stream."""
        with self._lock:
            self._stopped.set()
            left = list(self._submissions.values())
        for submission in left:
            submission.abandon()
        # While the broker is away, nothing is to be had from it but a wait for its silence to end.
        if self._thread is not None and self._process_id == os.getpid() and not self._outage.lasts:
            try:
                self._client.xadd(self._stream, {"record": ""})  # the thread waits for news
                self._thread.join(timeout=2 * BLOCK_MS / 1000)
                self._client.unlink(self._stream)
            except redis.exceptions.RedisError:
                log.debug("could not delete the reply stream; it expires by itself")
        self._client.close()

    def read(self, pause_s: float) -> float:
        """Reads once, on the reader's thread; returns how long to pause then, in seconds, given the last pause."""
        try:
            self._read()
            if time.monotonic() - self._checked_at >= 1.0:
                self._check_overdue()
                self._checked_at = time.monotonic()
        except Exception as error:  # whatever it is: without this thread all waiting would be for ever
            if not self._stopped.is_set():  # or it is our own closing of the connection
                self._complain(error)
            return min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
        self._outage.passed("replies")
        return 0.0

    def _complain(self, error: Exception) -> None:
        if isinstance(error, redis.exceptions.RedisError):
            self._outage.failed("replies", error)
        else:
            log.warning("reading replies failed (%s); trying again", type(error).__name__)

    def _read(self) -> None:
        replies: Any = self._client.xread({self._stream: self._last_id}, count=256, block=BLOCK_MS)
        for _, entries in replies or ():
            for entry_id, fields in entries:
                self._last_id = entry_id.decode()
                self._deliver(fields)
            # What is read is done with: the stream stays as long as the unread part.
            self._client.xtrim(self._stream, minid=_after(self._last_id), approximate=False)

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        submission = self._submissions.get(fields.pop(b"record").decode())
        if submission is not None:
            submission.add({int(position): wire for position, wire in fields.items()})

    def _check_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            expected = list(self._submissions.values())
        due = [submission for submission in expected if _is_due(submission, now)]
        overdue = heapq.nsmallest(
            CHECK_LIMIT, due, key=lambda submission: (submission.ends_at > now, submission.checked_at)
        )
        if not overdue:
            return
        snapshots = self._ledger.look([submission.entry.record_id for submission in overdue])
        forgotten = []
        for submission, snapshot in zip(overdue, snapshots, strict=True):
            submission.checked_at = now
            submission.add(snapshot.answers)
            if snapshot.open is None and not submission.complete and not submission.abandoned:
                left_s = submission.entry.timeout_s - (now - submission.entered_at)
                forgotten.append(replace(submission.entry, timeout_s=max(left_s, 0.001)))
        if any(snapshot.overdue for snapshot in snapshots):
            self._ledger.sweep("client")  # workers do that, if there are any
        late = {s.entry.lane for s in overdue if not s.complete and now - s.entered_at >= WARN_AFTER_S}
        if late:
            self._on_long_wait({lane.rsplit("|", 1)[0] for lane in late})
        if forgotten:
            log.warning("the broker has forgotten %d tasks; they are entered again", len(forgotten))
            self._ledger.enter(forgotten)


def _read_on(reference: weakref.ref[ReplyReader], stopped: threading.Event) -> None:
    """The reader's thread, which must not be what keeps the reader alive."""
    pause_s = 0.0
    while not stopped.wait(pause_s) and (reader := reference()) is not None:
        pause_s = reader.read(pause_s)
        del reader


def _is_due(submission: Submission, now: float) -> bool:
    """Whether the broker should be asked for it: after a time without news, and when its deadline passes."""
    if submission.complete:
        return False
    ended_at = submission.ends_at + DEADLINE_GRACE_S
    return now - submission.checked_at >= CHECK_AFTER_S or submission.checked_at < ended_at <= now


def _after(entry_id: str) -> str:
    milliseconds, sequence = entry_id.split("-")
    return f"{milliseconds}-{int(sequence) + 1}"
