"""What people write today: a Celery task that calls ``generate()`` for one prompt, in a worker of one process.

celery -A naive_worker worker --pool solo
"""

from __future__ import annotations

import os

from celery import Celery
from static_generation import StaticModel

app = Celery("naive", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
app.conf.update(task_default_queue="naive", worker_prefetch_multiplier=1)
_model = StaticModel(os.environ["PEER_MODEL"], os.environ["PEER_DTYPE"], int(os.environ["PEER_THREADS"]))


@app.task(name="generate")
def generate(messages: list[dict[str, str]], max_tokens: int) -> tuple[str, int]:
    """The answer to one chat, and its tokens."""
    return _model.answer([(messages, max_tokens)])[0]
