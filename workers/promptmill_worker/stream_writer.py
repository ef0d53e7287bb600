"""Sending texts on while they are made, without anybody waiting for it."""

from __future__ import annotations

import logging
import threading

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


class _Text:
    """The text of one choice on its way; the writer's lock is held by whoever touches it."""

    __slots__ = ("_choice", "_claim", "_position", "_repeats", "_sending", "_sent", "unsent")

    def __init__(self, claim: Claim, position: int, choice: int, repeats: bool) -> None:
        self._claim = claim
        self._position = position
        self._choice = choice
        self._repeats = repeats
        #: Characters that the broker has.
        self._sent = 0
        self._sending = ""
        self.unsent: list[str] = []

    def send(self) -> Piece:
        """What is unsent, in one piece."""
        self._sending, self.unsent = "".join(self.unsent), []
        claim = self._claim
        return Piece(
            claim.record_id, claim.token, self._position, self._choice, self._sent, self._repeats, self._sending
        )

    def was_sent(self, arrived: bool) -> None:
        """The piece has arrived, or has to be sent again."""
        if arrived:
            self._sent += len(self._sending)
        else:
            self.unsent.insert(0, self._sending)


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
        #: The texts of claims that are being worked off, by the claim's token.
        self._open: dict[str, list[_Text]] = {}
        #: Those of them that have something unsent.
        self._grown: set[_Text] = set()
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
        texts: dict[int, _Text] = {}
        with self._lock:
            of_claim = self._open.setdefault(claim.token, [])

        def on_text(choice: int, piece: str) -> None:
            with self._lock:
                text = texts.get(choice)
                if text is None:
                    text = texts[choice] = _Text(claim, position, choice, repeats)
                    of_claim.append(text)
                if claim.token not in self._open:
                    return
                text.unsent.append(piece)
                self._grown.add(text)
            if not self._news.is_set():
                self._news.set()

        return on_text

    def close(self, claim: Claim) -> None:
        """Drops what is left of a claim's texts: its prompts are answered, or not its own any more."""
        with self._lock:
            self._grown.difference_update(self._open.pop(claim.token, ()))

    def _run(self) -> None:
        pause_s = PAUSE_S
        while self._news.wait() and not self._stopped.wait(GATHER_S):
            self._news.clear()
            pause_s = PAUSE_S if self._write() else min(2 * pause_s, LONGEST_PAUSE_S)
            self._stopped.wait(pause_s)

    def _write(self) -> bool:
        """Writes what there is; False if it has to be tried again."""
        with self._lock:
            texts, self._grown = self._grown, set()
            pieces = [text.send() for text in texts]
        arrived = self._emit(pieces)
        with self._lock:
            for text in texts:
                text.was_sent(arrived)
            if not arrived:
                held = {text for of_claim in self._open.values() for text in of_claim}
                self._grown |= texts & held
                self._news.set()
        return arrived

    def _emit(self, pieces: list[Piece]) -> bool:
        try:
            self._ledger.emit(pieces)
        except redis.RedisError as error:
            log.debug("pieces of %d texts wait (%s)", len(pieces), type(error).__name__)
            return False
        except Exception as error:  # whatever it is: other texts have to go on, and the answers hold these
            log.error("pieces of %d texts were lost (%s)", len(pieces), type(error).__name__)
        return True
