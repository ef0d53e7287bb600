"""Which models are served, and which of them a request is for."""

from __future__ import annotations

import logging
import time

from pydantic import TypeAdapter, ValidationError

from promptmill.broker_errors import broker_errors
from promptmill.errors import InvalidRequestError, NoWorkerError
from promptmill.fleet import read_workers
from promptmill.ledger import Ledger
from promptmill.names import model_of_queue
from promptmill.settings import ClientSettings, ServedName

__all__ = ["ServedModels"]

log = logging.getLogger(__name__)

#: How long the answer to "which models are served?" is believed, in seconds.
MODELS_CACHE_S = 5.0


class ServedModels:
    """The served names, as the workers' records tell them. Thread-safe."""

    def __init__(self, settings: ClientSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        #: (when it was asked on the monotonic clock, the answer)
        self._known: tuple[float, list[str]] = (0.0, [])
        self._warned_of: set[str] = set()

    def resolve(self, model: str | None, require_worker: bool) -> str:
        """The served name to submit to: ``model``, the settings', or the only one that is served.

        Raises:
            InvalidRequestError: it is no served name, or several are served and none was named.
            NoWorkerError: no worker serves it and ``require_worker`` is set, or none was named and none is served.
            BrokerUnavailableError: the broker had to be asked, and does not answer.
        """
        wanted = self._settings.model if model is None else _served_name(model)
        if wanted is not None and not require_worker:
            return wanted
        served = self._served()
        if wanted is not None:
            if wanted not in served:
                raise NoWorkerError(f"no worker serves {wanted!r}; served are: {', '.join(served) or 'none'}", wanted)
            return wanted
        if not served:
            raise NoWorkerError(
                "no model was named and no worker is up: start a worker, or name the model (model=, PROMPTMILL_MODEL)"
            )
        if len(served) > 1:
            raise InvalidRequestError(f"several models are served, name one of them: {', '.join(served)}")
        return served[0]

    def _served(self) -> list[str]:
        asked_at, served = self._known
        if not served or time.monotonic() - asked_at > MODELS_CACHE_S:
            with broker_errors(self._settings):
                workers = self._ledger.patiently(lambda: read_workers(self._ledger.client, self._ledger.names))
            served = sorted({worker.served_name for worker in workers})
            self._known = (time.monotonic(), served)
        return served

    def warn_of_unserved(self, queues: set[str]) -> None:
        """Says, once for each model, why nothing happens. Called on the reply reader's thread."""
        served = {worker.served_name for worker in read_workers(self._ledger.client, self._ledger.names)}
        for model in {model_of_queue(queue) for queue in queues} - served - self._warned_of:
            log.warning(
                "no worker serves %r; the tasks wait for one (served are: %s)",
                model,
                ", ".join(sorted(served)) or "none",
            )
            self._warned_of.add(model)


_SERVED_NAME: TypeAdapter[str] = TypeAdapter(ServedName)


def _served_name(model: str) -> str:
    try:
        return _SERVED_NAME.validate_python(model)
    except ValidationError:
        raise InvalidRequestError(
            f"model: {model!r} is not a served name: letters, digits, dots, dashes and underscores, as "
            "`promptmill status` shows it"
        ) from None
