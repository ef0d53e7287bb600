"""The answers of one client, as they come."""

from __future__ import annotations

import heapq
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace

import redis

from promptmill.ledger import Asker, Entry, calls
from promptmill.names import Names
from promptmill.outage import Outage
from promptmill.submission import Submission
from promptmill.transport import Job, Signal, Transport

__all__ = ["ReplyReader"]

log = logging.getLogger(__name__)

#: How long one read of the stream waits for news; after that the reading of a reader that nobody holds ends.
BLOCK_MS = 1000

#: The longest pause between two tries to read, in seconds.
LONGEST_PAUSE_S = 2.0

#: How long the broker is tried at once when it is asked for what is overdue, in seconds.
ASK_S = 1.0

#: After how many seconds without news the broker is asked for a submission: the stream is a hint, the ledger the truth.
CHECK_AFTER_S = 5.0

#: How long after its deadline a submission should have been ended by a worker, in seconds.
DEADLINE_GRACE_S = 1.0

#: How long a submission waits before it is asked whether any worker serves its model.
WARN_AFTER_S = 10.0

#: The most submissions that are asked for at once.
CHECK_LIMIT = 200


class ReplyReader:
    """Reads a client's reply stream, beside all else, and hands answers to their submissions.

    The stream may lose entries (a broker restarted), and so may the queue: every few seconds the reader asks the ledger
    for what is overdue, takes what is answered, and enters again what the broker has forgotten. A submission that
    nobody holds any more is forgotten here; its task goes on. The reading, too, ends when nobody holds the reader.

    Each process has a stream of its own, also a forked child.

    Args:
        transport: One of its own, since it waits in the broker.
        asker: To ask the ledger for what is overdue.
        names: The keys.
        outage: Told whether the broker answers.
        on_long_wait: Called with the queues of submissions that are overdue, so that it can be said why.
    """

    def __init__(
        self,
        transport: Transport,
        asker: Asker,
        names: Names,
        outage: Outage,
        on_long_wait: Callable[[set[str]], Awaitable[None]],
    ) -> None:
        self._transport = transport
        self._asker = asker
        self._names = names
        self._outage = outage
        self._on_long_wait = on_long_wait
        self._stopped = transport.signal()
        self._begin()

    def _begin(self) -> None:
        self._process_id = os.getpid()
        self._stream = self._names.replies(uuid.uuid4().hex)
        self._lock = threading.Lock()
        self._submissions: weakref.WeakValueDictionary[str, Submission] = weakref.WeakValueDictionary()
        self._reading: Job | None = None
        self._last_id = "0"
        self._checked_at = time.monotonic()

    @property
    def stream(self) -> str:
        """Key of this process's reply stream."""
        if self._process_id != os.getpid():  # a forked child: the thread stayed behind, the stream is the parent's
            self._begin()
        return self._stream

    def expect(self, submission: Submission) -> None:
        """Watches for the answers of ``submission``, from before it is entered. Begins to read when first called.

        Raises:
            RuntimeError: the reader is closed.
        """
        with self._lock:
            if self._stopped.is_set():
                raise RuntimeError("this client is closed: make another")
            self._submissions[submission.entry.record_id] = submission
            if self._reading is None:
                self._reading = self._transport.spawn("replies", _read_on(weakref.ref(self), self._stopped))

    def find(self, record_id: str) -> Submission | None:
        """The submission of a record, if this client has entered it and still waits for it."""
        submission = self._submissions.get(record_id) if self._process_id == os.getpid() else None
        # One that may not be there is its submitter's: he may give it up.
        return submission if submission is not None and submission.entered_at < math.inf else None

    async def close(self) -> None:
        """Ends the reading and all waiting, and deletes the stream."""
        with self._lock:
            self._stopped.set()
            left = list(self._submissions.values())
        for submission in left:
            submission.abandon()
        # While the broker is away, nothing is to be had from it but a wait for its silence to end.
        if self._reading is not None and self._process_id == os.getpid() and not self._outage.lasts:
            try:
                await self._transport.execute([("XADD", self._stream, "*", "record", "")])  # it waits for news
                await self._reading.join(timeout_s=2 * BLOCK_MS / 1000)
                await self._transport.execute([("UNLINK", self._stream)])
            except redis.RedisError:
                log.debug("could not delete the reply stream; it expires by itself")
        await self._transport.close()

    async def read(self, pause_s: float) -> float:
        """Reads once, as ``_read_on`` does; returns how long to pause then, in seconds, given the last pause."""
        began_at = time.monotonic()
        try:
            await self._read()
            if time.monotonic() - self._checked_at >= 1.0:
                await self._check_overdue()
                self._checked_at = time.monotonic()
        except Exception as error:  # whatever it is: without this all waiting would be for ever
            if not self._stopped.is_set():  # or it is our own closing of the connection
                self._complain(error, began_at)
            return min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
        self._outage.passed("replies")
        return 0.0

    def _complain(self, error: Exception, began_at: float) -> None:
        if isinstance(error, redis.exceptions.RedisError):
            self._outage.failed("replies", error, began_at)
        else:
            log.warning("reading replies failed (%s); trying again", type(error).__name__)

    async def _read(self) -> None:
        command = ("XREAD", "COUNT", 256, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last_id)
        [replies] = await self._transport.execute([command], waits=True)
        for _, entries in replies or ():
            for entry_id, fields in entries:
                self._last_id = entry_id.decode()
                self._deliver(fields)
            # What is read is done with: the stream stays as long as the unread part.
            await self._transport.execute([("XTRIM", self._stream, "MINID", _after(self._last_id))])

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        submission = self._submissions.get(fields.pop(b"record").decode())
        if submission is not None:
            submission.add({int(position): wire for position, wire in fields.items()})

    async def _check_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            expected = list(self._submissions.values())
        due = [submission for submission in expected if _is_due(submission, now)]
        overdue = heapq.nsmallest(
            CHECK_LIMIT, due, key=lambda submission: (submission.ends_at > now, submission.checked_at)
        )
        if not overdue:
            return
        record_ids = [submission.entry.record_id for submission in overdue]
        snapshots = await self._asker.ask(calls.look(self._names, record_ids), ASK_S)
        forgotten = []
        for submission, snapshot in zip(overdue, snapshots, strict=True):
            submission.checked_at = now
            submission.add(snapshot.answers)
            if snapshot.open is None and not submission.complete and not submission.abandoned:
                left_s = submission.entry.timeout_s - (now - submission.entered_at)
                forgotten.append(replace(submission.entry, timeout_s=max(left_s, 0.001)))
        if any(snapshot.overdue for snapshot in snapshots):
            await self._asker.ask(calls.sweep(self._names, "client"), ASK_S)  # workers do that, if there are any
        late = {s.entry.lane for s in overdue if not s.complete and now - s.entered_at >= WARN_AFTER_S}
        if late:
            await self._on_long_wait({lane.rsplit("|", 1)[0] for lane in late})
        if forgotten:
            log.warning("the broker has forgotten %d tasks; they are entered again", len(forgotten))
            await self._enter_again(forgotten)

    async def _enter_again(self, forgotten: list[Entry]) -> None:
        replies = await self._asker.ask(calls.enter(self._names, forgotten), ASK_S)
        # Somebody else may have used its idempotency key meanwhile. Here its own answer is waited for.
        without_key = [
            replace(entry, key="", digest="")
            for entry, reply in zip(forgotten, replies, strict=True)
            if reply.startswith(("same", "conflict"))
        ]
        if without_key:
            await self._asker.ask(calls.enter(self._names, without_key), ASK_S)


async def _read_on(reference: weakref.ref[ReplyReader], stopped: Signal) -> None:
    """Goes on for as long as the reader lives, and must not be what keeps it alive."""
    pause_s = 0.0
    while not await stopped.wait(pause_s) and (reader := reference()) is not None:
        pause_s = await reader.read(pause_s)
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
