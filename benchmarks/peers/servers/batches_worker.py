"""celery-batches: a Celery task that is called with many requests at once, here for one static batch.

celery -A batches_worker worker --pool solo
"""

from __future__ import annotations

import os

from celery import Celery
from celery_batches import Batches, SimpleRequest
from static_generation import StaticModel

SLOTS = int(os.environ["PEER_SLOTS"])

app = Celery("batches", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
# With one process this is how many messages a worker takes in advance: a batch, and the next one while that runs.
app.conf.update(task_default_queue="batches", worker_prefetch_multiplier=2 * SLOTS, worker_concurrency=1)
_model = StaticModel(os.environ["PEER_MODEL"], os.environ["PEER_DTYPE"], int(os.environ["PEER_THREADS"]))


@app.task(name="generate", base=Batches, flush_every=SLOTS, flush_interval=0.1)
def generate(requests: list[SimpleRequest]) -> None:
    """Answers the chats of all requests."""
    answers = _model.answer([(request.args[0], request.args[1]) for request in requests])
    for request, answer in zip(requests, answers, strict=True):
        app.backend.mark_as_done(request.id, answer, request=request)
