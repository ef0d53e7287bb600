"""Plain Celery calls in a storm, from an application that doesn't use our client."""

from __future__ import annotations

import random
import threading
import uuid

import kombu.exceptions
from celery import Celery
from redis import Redis
from storm_account import Account
from storm_submitters import prompt_of

from promptmill.names import Names, queue_name

__all__ = ["PlainCaller"]

OWNER = "plain"


class PlainCaller:
    """Calls ``promptmill.generate`` again and again, on a thread of its own.

    Args:
        url: The broker's.
        model: Served name.
        calls: How many.
        seconds: Over how many seconds they are spread.
        chance: Draws the pauses.
    """

    def __init__(self, url: str, model: str, calls: int, seconds: float, chance: random.Random) -> None:
        self._app = Celery("caller", broker=url, backend=url, set_as_current=False)
        self._queue = queue_name(model)
        self._calls = calls
        self._pauses_s = [2 * chance.random() * seconds / max(1, calls) for _ in range(calls)]
        self._closing = threading.Event()
        #: Celery ids, by number.
        self.ids: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the last call."""
        self._thread.join()

    def close(self) -> None:
        """Makes no further calls."""
        self._closing.set()
        self.join()
        self._app.close()

    def _run(self) -> None:
        for number, pause_s in enumerate(self._pauses_s):
            if self._closing.wait(pause_s):
                return
            call_id = uuid.uuid4().hex
            self.ids.append(call_id)
            while not self._send(call_id, number) and not self._closing.wait(0.5):
                pass

    def _send(self, call_id: str, number: int) -> bool:
        """Sends a call; False if that may have failed: under the same id it may be sent again."""
        keywords = {"prompt": prompt_of(OWNER, number), "max_tokens": 100}
        try:
            # Without retries of its own: they would go on for longer than a storm.
            self._app.send_task("promptmill.generate", kwargs=keywords, queue=self._queue, task_id=call_id, retry=False)
        except (kombu.exceptions.OperationalError, OSError):
            return False
        return True

    def unanswered(self) -> int:
        """How many calls have no result yet."""
        return sum(self._state(call_id)[0] not in ("SUCCESS", "FAILURE") for call_id in self.ids)

    def account(self, broker: Redis, names: Names) -> Account:
        """What became of the calls.

        One that no worker had taken yet when its message was lost is not promised to be answered: it never was in the
        ledger, and Celery never saw it started.
        """
        account = Account("plain calls", submitted=len(self.ids))
        for number, call_id in enumerate(self.ids):
            state, result = self._state(call_id)
            if state == "SUCCESS":
                account.note("right" if result["text"] == prompt_of(OWNER, number) else "wrong", call_id)
            elif state == "PENDING" and not broker.exists(names.record(call_id)):
                account.fates["never taken"] += 1
            else:
                account.note("stuck" if broker.exists(names.record(call_id)) else "lost", f"{call_id} {state}")
        return account

    def _state(self, call_id: str) -> tuple[str, dict[str, str]]:
        meta = self._app.backend.get_task_meta(call_id, cache=False)
        return meta["status"], meta["result"]
