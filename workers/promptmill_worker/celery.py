"""Exists for ``celery -A promptmill_worker worker``: it reads the environment when imported."""

from promptmill_worker.settings import WorkerSettings
from promptmill_worker.worker import create_worker_app

app = create_worker_app(WorkerSettings.read())
