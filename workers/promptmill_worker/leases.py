"""The claims that this worker holds, kept alive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from promptmill.ledger import Ledger

__all__ = ["Leased", "Leases"]


class Leased(Protocol):
    """What holds a claim, and has to hear when it is gone."""

    def settle(self, positions: tuple[int, ...]) -> None:
        """These prompts were answered by somebody else: cancelled. One that is not held changes nothing."""

    def lease_lost(self) -> None:
        """The lease is lost: the work belongs to somebody else, or is answered."""

    def put_back(self) -> None:
        """The worker stops: what isn't answered goes back into the queue."""


class Leases:
    """All claims of this worker; ``renew`` is to be called every beat. Thread-safe."""

    def __init__(self, ledger: Ledger, lease_s: float) -> None:
        self._ledger = ledger
        self.lease_s = lease_s
        self._held: dict[str, Leased] = {}
        self._stopping = False
        # Reentrant: a signal may come while this thread has it.
        self._lock = threading.RLock()

    @contextmanager
    def holding(self, token: str, holder: Leased) -> Iterator[None]:
        """Renews the lease of ``token`` until the block is left. A worker that stops puts it back at once."""
        with self._lock:
            self._held[token] = holder
            if self._stopping:
                holder.put_back()
        try:
            yield
        finally:
            with self._lock:
                del self._held[token]

    def renew(self) -> None:
        """Renews all leases in one call, and tells those whose lease is lost."""
        with self._lock:
            held = dict(self._held)
        for token in self._ledger.renew(list(held), self.lease_s):
            held[token].lease_lost()

    def settle(self, record_id: str, positions: tuple[int, ...]) -> None:
        """Tells those that hold a part of the record."""
        with self._lock:
            holders = [holder for token, holder in self._held.items() if token.startswith(f"{record_id}/")]
        for holder in holders:
            holder.settle(positions)

    def records(self) -> set[str]:
        """The records that this worker holds parts of."""
        with self._lock:
            return {token.rpartition("/")[0] for token in self._held}

    def put_back_all(self) -> None:
        """Has all that is held put back, now and from now on."""
        with self._lock:
            self._stopping = True
            held = list(self._held.values())
        for holder in held:
            holder.put_back()
