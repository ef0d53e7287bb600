"""Reading the texts of a task while they are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from promptmill.delta import Delta, Deltas, SentPiece
from promptmill.errors import PromptmillError
from promptmill.protocol import GenerationResult
from promptmill.session import Session

__all__ = ["TextStream"]

#: How long the first read of a stream waits for news, and the longest, in seconds; then the ledger is asked.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0

#: Entries that one read takes at most.
READ_ENTRIES = 1000

#: Tells a task's answer, if it is there within so many seconds; if the second is true, an outage is waited for.
AskForAnswer = Callable[[float, bool], Awaitable[GenerationResult | PromptmillError | None]]


class TextStream:
    """The texts of one prompt, for one reader.

    The stream is a hint, the answer the truth: what the stream lacks comes with the answer, and whatever becomes of it,
    reading ends when the task is answered.

    Args:
        session: The way to the broker.
        record_id: The task's record.
        position: The prompt in it.
        is_streamed: Whether there can be a stream at all; without one the whole text comes with the answer.
        answer: Asks for that.
    """

    def __init__(
        self, session: Session, record_id: str, position: int, is_streamed: bool, answer: AskForAnswer
    ) -> None:
        self._session = session
        self._prompt = (record_id, position)
        self._is_streamed = is_streamed
        self._answer = answer
        self._last_id = "0"
        self._wait_s = FIRST_WAIT_S
        #: Once the broker has answered there is something to lose: an outage is waited for.
        self._insists = False

    async def deltas(self, from_start: bool) -> AsyncGenerator[Delta, None]:
        """What is new, as it comes, until the task is answered.

        Args:
            from_start: Or only what comes from now on.

        Raises:
            PromptmillError: the task's own error, or what asking for the answer raises.
        """
        deltas = Deltas()
        tells = from_start
        while True:
            pieces, is_all, ended = await self._read(waits=tells)
            for piece in pieces:
                for delta in deltas.of(piece):
                    if tells:
                        yield delta
            if not is_all:
                continue
            # An end that is told is there in the ledger, and on its way to us.
            answer = await self._answer(LONGEST_WAIT_S if ended or not self._is_streamed else 0.0, self._insists)
            if isinstance(answer, PromptmillError):
                raise answer
            if answer is not None:
                for delta in deltas.rest_of(answer):
                    if tells:
                        yield delta
                return
            tells = True

    async def _read(self, waits: bool) -> tuple[list[SentPiece], bool, bool]:
        """New pieces, whether these were all for now, and whether the end was told."""
        if not self._is_streamed:
            return [], True, False
        wait_s = self._wait_s if waits else 0.0
        try:
            entries = await self._session.read_stream(*self._prompt, self._last_id, READ_ENTRIES, wait_s, self._insists)
        except Exception:  # of whatever kind, if another thread closes the connection that we read from
            if not self._session.closed:
                raise
            return [], True, False
        self._insists = True
        if not entries:
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            return [], True, False
        self._last_id, last = entries[-1]
        ended = b"end" in last
        return [_piece_of(fields) for _, fields in entries if b"end" not in fields], ended, ended


def _piece_of(fields: dict[bytes, bytes]) -> SentPiece:
    return SentPiece(
        run=fields[b"run"].decode(),
        choice=int(fields[b"choice"]),
        offset=int(fields[b"offset"]),
        repeats=fields[b"repeats"] == b"1",
        text=fields[b"text"].decode(),
    )
