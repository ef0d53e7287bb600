"""Which model answers a line."""

from __future__ import annotations

import time
from collections.abc import Callable

from promptmill.client import Client
from promptmill.errors import BrokerUnavailableError, InvalidRequestError, NoWorkerError
from promptmill.fleet import Fleet

__all__ = ["ModelChoice", "NotServedError"]

#: How often the workers are asked for again when a line names a model that is not known, in seconds.
ASK_EVERY_S = 5.0
#: How long the first such line waits for a worker of its model, in seconds: it may just be starting again.
PATIENCE_S = 10.0


class NotServedError(InvalidRequestError):
    """A line names a model that no worker serves."""


class ModelChoice:
    """The models that lines may name, and the one of lines that name none.

    What was served once during the run may be named until its end: its workers may just be starting again.

    Args:
        client: Knows the workers, and perhaps a model of its own.
        ignores_names: Have the client's model answer all lines, whatever they name.

    Raises:
        BrokerUnavailableError: the broker does not answer. From then on one that goes away is waited for.
    """

    def __init__(self, client: Client, ignores_names: bool = False) -> None:
        self._client = client
        self._ignores_names = ignores_names
        self._default = client.settings.model
        #: Served names, and the ids, folders and files of their models, to served names.
        self._served = {self._default: self._default} if self._default else {}
        self._patient_until: float | None = None
        self._note(client.fleet())

    def default(self) -> str:
        """The client's model, else the only one that is served.

        Raises:
            InvalidRequestError: several are.
            NoWorkerError: none is.
        """
        if self._default is None:
            self._ask()
            served = sorted(set(self._served.values()))
            if not served:
                raise NoWorkerError(
                    "no model was named and no worker is up: start a worker, or name the model (--model)"
                )
            if len(served) > 1:
                raise InvalidRequestError(f"several models are served, name one of them: {', '.join(served)} (--model)")
            self._default = served[0]
        return self._default

    def named(self, model: str, is_settled: Callable[[], bool]) -> str:
        """The served name of the model that a line names: by that name, or by what its workers have loaded.

        Args:
            model: What the line names.
            is_settled: Whether the line need not be run: no worker is waited for then.

        Raises:
            NotServedError: it is not served.
            NoWorkerError: no model is: no fault of the line's.
        """
        if self._ignores_names:
            return self.default()
        if model not in self._served:
            self._look_for(model, is_settled)
        if model not in self._served:
            served = ", ".join(sorted(set(self._served.values()))) or "none"
            raise NotServedError(
                f"model: {model[:80]!r} is not served (served are: {served}): correct the line, start a worker, or "
                "have one model answer all lines with --ignore-model"
            )
        return self._served[model]

    def _look_for(self, model: str, is_settled: Callable[[], bool]) -> None:
        if time.monotonic() - self._asked_at > ASK_EVERY_S:
            self._ask()
        if model in self._served or is_settled():
            return
        if self._patient_until is None:
            self._patient_until = time.monotonic() + PATIENCE_S
        while model not in self._served and time.monotonic() < self._patient_until:
            time.sleep(0.25)
            self._ask()
        if not self._served:
            raise NoWorkerError(
                f"no worker is up, so that nobody knows model {model[:80]!r}: start one, or have the batch wait for a "
                "model (--model)"
            )

    def _ask(self) -> None:
        while True:
            try:
                return self._note(self._client.fleet())
            except BrokerUnavailableError:
                time.sleep(1)

    def _note(self, fleet: Fleet) -> None:
        for worker in fleet.workers:
            self._served.setdefault(worker.model, worker.served_name)
        # A served name means itself, even if it is another worker's id.
        self._served.update({worker.served_name: worker.served_name for worker in fleet.workers})
        self._asked_at = time.monotonic()
