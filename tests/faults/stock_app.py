"""Celery as it comes, with the settings that people are told to take for reliability."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("stock", broker=os.environ.get("STOCK_BROKER_URL"), backend=os.environ.get("STOCK_BROKER_URL"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 30,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    },
)


@app.task(name="stock.echo")
def echo(text: str) -> str:
    return text
