"""Which models are served, and which of them a request is for."""

from __future__ import annotations

import logging
import math
import time

import redis
from pydantic import TypeAdapter, ValidationError

from promptmill.broker_errors import broker_errors
from promptmill.errors import InvalidRequestError, NoWorkerError
from promptmill.fleet import WorkerRecord, read_workers
from promptmill.ledger import Asker
from promptmill.names import Names, model_of_queue
from promptmill.settings import ClientSettings, ServedName

__all__ = ["ServedModels"]

log = logging.getLogger(__name__)

#: How long the answer to "which models are served?" is believed, in seconds.
MODELS_CACHE_S = 5.0


class ServedModels:
    """The workers and their served names, as the workers' records tell them.

    Args:
        settings: The client's.
        asker: The way to the broker.
        names: The keys.
    """

    def __init__(self, settings: ClientSettings, asker: Asker, names: Names) -> None:
        self._settings = settings
        self._asker = asker
        self._names = names
        #: When the workers were asked for last, on the monotonic clock, and what came of it.
        self._asked_at = -math.inf
        self._workers: list[WorkerRecord] = []
        self._warned_of: set[str] = set()

    async def resolve(self, model: str | None, require_worker: bool) -> str:
        """The served name to submit to: ``model``, the settings', or the only one that is served.

        Raises:
            InvalidRequestError: it is no served name, or several are served and none was named.
            NoWorkerError: no worker serves it and ``require_worker`` is set, or none was named and none is served.
            BrokerUnavailableError: the broker had to be asked, and does not answer.
        """
        wanted = self._settings.model if model is None else _served_name(model)
        if wanted is not None and not require_worker:
            return wanted
        served = await self._served()
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

    async def batches(self, model: str) -> list[int]:
        """How many prompts each worker of ``model`` runs at once, as far as is known."""
        if time.monotonic() - self._asked_at > MODELS_CACHE_S:
            try:
                await self._ask(patience_s=0.0)
            except redis.RedisError:  # it is away; what was known is the best guess, for a while
                self._asked_at = time.monotonic()
        return [max(1, worker.max_batch) for worker in self._workers if worker.served_name == model]

    async def warn_of_unserved(self, queues: set[str]) -> None:
        """Says, once for each model, why nothing happens."""
        workers = await read_workers(self._asker.transport, self._names)
        served = {worker.served_name for worker in workers}
        for model in {model_of_queue(queue) for queue in queues} - served - self._warned_of:
            log.warning(
                "no worker serves %r; the tasks wait for one (served are: %s)",
                model,
                ", ".join(sorted(served)) or "none",
            )
            self._warned_of.add(model)

    async def _served(self) -> list[str]:
        if not self._workers or time.monotonic() - self._asked_at > MODELS_CACHE_S:
            with broker_errors(self._settings):
                await self._ask(self._settings.broker_timeout_s)
        return sorted({worker.served_name for worker in self._workers})

    async def _ask(self, patience_s: float) -> None:
        transport = self._asker.transport
        self._workers = await self._asker.patiently(lambda: read_workers(transport, self._names), patience_s)
        self._asked_at = time.monotonic()


_SERVED_NAME: TypeAdapter[str] = TypeAdapter(ServedName)


def _served_name(model: str) -> str:
    try:
        return _SERVED_NAME.validate_python(model)
    except ValidationError:
        raise InvalidRequestError(
            f"model: {model!r} is not a served name: letters, digits, dots, dashes and underscores, as "
            "`promptmill status` shows it"
        ) from None
