"""The answers of one client, as they come."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import redis

from promptmill.ledger import TRANSIENT_ERRORS, Ledger
from promptmill.submission import Submission

__all__ = ["ReplyReader"]

log = logging.getLogger(__name__)

#: How long one read of the stream waits for news; a stop takes effect after that.
BLOCK_MS = 1000

#: After how many seconds without news the broker is asked for a submission: the stream is a hint, the ledger the truth.
CHECK_AFTER_S = 5.0

#: How long a submission waits before it is asked whether any worker serves its model.
WARN_AFTER_S = 10.0

#: The most submissions that are asked for at once.
CHECK_LIMIT = 200


class ReplyReader:
    """Reads a client's reply stream on a thread of its own and hands answers to their submissions.

    The stream may lose entries (a broker restarted), and so may the queue: every few seconds the reader asks the ledger
    for what is overdue, takes what is answered, and enters again what the broker has forgotten. A submission that
    nobody holds any more is forgotten here; its task goes on.

    Args:
        client: A redis-py client of its own, since it blocks.
        ledger: To ask for what is overdue.
        streams: Makes the key of a reply stream; each process has its own, also a forked child.
        on_long_wait: Called with the queues of submissions that are overdue, so that it can be said why.
    """

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        streams: Callable[[], str],
        on_long_wait: Callable[[set[str]], None],
    ) -> None:
        self._client = client
        self._ledger = ledger
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
                self._thread = threading.Thread(target=self._run, name="promptmill replies", daemon=True)
                self._thread.start()

    def find(self, record_id: str) -> Submission | None:
        """The submission of a record, if this client has made it and still waits for it."""
        return self._submissions.get(record_id) if self._process_id == os.getpid() else None

    def close(self) -> None:
        """Ends the thread and all waiting, and deletes the stream."""
        with self._lock:
            self._stopped.set()
            left = list(self._submissions.values())
        if self._thread is not None and self._process_id == os.getpid():
            try:
                self._client.xadd(self._stream, {"record": ""})  # the thread waits for news
                self._thread.join(timeout=2 * BLOCK_MS / 1000)
                self._client.unlink(self._stream)
            except redis.exceptions.RedisError:
                log.debug("could not delete the reply stream; it expires by itself")
        for submission in left:
            submission.abandon()
        self._client.close()

    def _run(self) -> None:
        pause_s = 0.1
        while not self._stopped.is_set():
            try:
                self._read()
                if time.monotonic() - self._checked_at >= 1.0:
                    self._check_overdue()
                    self._checked_at = time.monotonic()
                pause_s = 0.1
            except Exception as error:  # whatever it is: without this thread all waiting would be for ever
                log.log(
                    logging.DEBUG if isinstance(error, TRANSIENT_ERRORS) else logging.WARNING,
                    "reading replies failed (%s); trying again",
                    type(error).__name__,
                )
                self._stopped.wait(pause_s)
                pause_s = min(2 * pause_s, 2.0)

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
        overdue = [
            submission
            for submission in expected
            if not submission.complete and now - submission.checked_at >= CHECK_AFTER_S
        ][:CHECK_LIMIT]
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
        late = {s.entry.lane for s in overdue if not s.complete and now - s.entered_at >= WARN_AFTER_S}
        if late:
            self._on_long_wait({lane.rsplit("|", 1)[0] for lane in late})
        if forgotten:
            log.warning("the broker has forgotten %d tasks; they are entered again", len(forgotten))
            self._ledger.enter(forgotten)


def _after(entry_id: str) -> str:
    milliseconds, sequence = entry_id.split("-")
    return f"{milliseconds}-{int(sequence) + 1}"
