"""How many prompts travel together."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_CHUNK_SIZE", "ChunkSizer"]

#: The most prompts in one record: the broker's Lua hands no more than 8,000 values to a command.
MAX_CHUNK_SIZE = 1024

#: The most that is chosen where the user leaves it open: larger chunks gain nothing.
LARGEST_CHOICE = 256

#: What a chunk should not exceed, in bytes: a claim of a part of it has the broker read all of it.
CHUNK_BYTES = 131_072

#: The least window, in prompts, and how many batches of the whole fleet it holds.
WINDOW, WINDOW_BATCHES = 1024, 8


class ChunkSizer:
    """Chooses window and chunk size of one ``map``: by its prompts' sizes, by the fleet, and by what is left.

    Args:
        max_in_flight: The window as the user wants it; None: what keeps the fleet busy.
        chunk_size: The chunk size as the user wants it; None: chosen here.
        total: How many prompts there are, if that is known; that there are more may turn out.
    """

    def __init__(self, max_in_flight: int | None, chunk_size: int | None, total: int | None) -> None:
        self._max_in_flight = max_in_flight
        self._chunk_size = chunk_size
        self._total = total
        self._read = 0
        #: Mean size of the requests so far, in bytes.
        self._request_bytes = 0.0

    def window(self, batches: Sequence[int]) -> int:
        """How many prompts may be in flight, given how many each worker runs at once."""
        return self._max_in_flight or max(WINDOW, WINDOW_BATCHES * sum(batches))

    def next(self, batches: Sequence[int]) -> int:
        """The size of the next chunk: at least 1."""
        window = self.window(batches)
        if self._chunk_size is not None:
            return min(self._chunk_size, window)
        workers = max(1, len(batches))
        # Every worker finds several chunks in the window: while one chunk's last prompts run, another is there.
        choices = [LARGEST_CHOICE, window // (4 * workers)]
        if self._request_bytes:
            choices.append(int(CHUNK_BYTES / self._request_bytes))
        if self._total is not None and self._total > self._read and workers > 1:
            # Smaller and smaller towards the end, so that no worker has much to do when the others have nothing.
            choices.append((self._total - self._read) // (2 * workers))
        return max(1, min(choices))

    def note(self, prompts: int, size_bytes: int) -> None:
        """A chunk was made: of ``prompts`` prompts, in ``size_bytes`` bytes."""
        self._request_bytes += (size_bytes / max(1, prompts) - self._request_bytes) / (1 if not self._read else 8)
        self._read += prompts
