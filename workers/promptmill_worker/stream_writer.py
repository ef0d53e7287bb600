"""Sending texts on while they are made, without anybody waiting for it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import replace

import redis

from promptmill.ledger import Claim, Ledger, Piece
from promptmill_worker.engine import OnText

__all__ = ["StreamWriter"]

log = logging.getLogger(__name__)

#: How long the pieces of one step are waited for after the first of them, in seconds.
GATHER_S = 0.002

#: The shortest pause between two writes, in seconds: what comes meanwhile goes together.
PAUSE_S = 0.03

#: The longest pause between two tries to write while the broker is away, in seconds.
LONGEST_PAUSE_S = 1.0

#: Token of a claim, position of a prompt, number of a choice.
_Text = tuple[str, int, int]


class StreamWriter:
    """Writes the pieces of all texts that are streamed, on a thread of its own; the engine only hands them over.

    All that came since the last write goes together, in one round trip. While the broker is slow or away pieces wait
    here, joined, so that no more is held than the texts of running prompts; what is unsent when a prompt is answered is
    dropped, as the answer holds it.

    Args:
        ledger: One that fails soon: a write that fails is tried again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        #: Tokens of the claims that are being worked off.
        self._open: set[str] = set()
        self._unsent: dict[_Text, Piece] = {}
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="promptmill streams", daemon=True)

    def start(self) -> None:
        """Writes from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Waits for a write that is under way, and makes no other."""
        self._stopped.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    def open(self, claim: Claim, position: int, repeats: bool) -> OnText:
        """Whom to tell the texts of one prompt; it never waits.

        Args:
            claim: Whose prompt it is; to be closed.
            position: Which of the claim's record.
            repeats: Whether another run of the prompt would give the same texts.
        """
        with self._lock:
            self._open.add(claim.token)
        lengths: Counter[int] = Counter()

        def on_text(choice: int, text: str) -> None:
            piece = Piece(claim.record_id, claim.token, position, choice, lengths[choice], repeats, text)
            lengths[choice] += len(text)
            self._take(piece)

        return on_text

    def close(self, claim: Claim) -> None:
        """Drops what is left of a claim's pieces: its prompts are answered, or not its own any more."""
        with self._lock:
            self._open.discard(claim.token)
            for text in [text for text in self._unsent if text[0] == claim.token]:
                del self._unsent[text]

    def _take(self, piece: Piece) -> None:
        text = (piece.token, piece.position, piece.choice)
        with self._lock:
            if piece.token not in self._open:
                return
            before = self._unsent.get(text)
            self._unsent[text] = piece if before is None else _joined(before, piece)
        self._news.set()

    def _run(self) -> None:
        pause_s = PAUSE_S
        while self._news.wait() and not self._stopped.wait(GATHER_S):
            self._news.clear()
            pause_s = PAUSE_S if self._write() else min(2 * pause_s, LONGEST_PAUSE_S)
            self._stopped.wait(pause_s)

    def _write(self) -> bool:
        """Writes what there is; False if it has to be tried again."""
        with self._lock:
            taken, self._unsent = self._unsent, {}
        try:
            self._ledger.emit(list(taken.values()))
        except redis.RedisError as error:
            log.debug("pieces of %d texts wait (%s)", len(taken), type(error).__name__)
            self._take_back(taken)
            return False
        except Exception as error:  # whatever it is: other texts have to go on, and the answers hold these
            log.error("pieces of %d texts were lost (%s)", len(taken), type(error).__name__)
        return True

    def _take_back(self, taken: dict[_Text, Piece]) -> None:
        with self._lock:
            for text, piece in taken.items():
                if piece.token in self._open:
                    after = self._unsent.get(text)
                    self._unsent[text] = piece if after is None else _joined(piece, after)
        self._news.set()


def _joined(piece: Piece, after: Piece) -> Piece:
    return replace(piece, text=piece.text + after.text)
