"""Exists for ``celery -A promptmill inspect``, ``flower`` and the like: it reads the environment when imported."""

from promptmill.app import create_app
from promptmill.settings import Settings

app = create_app(Settings.read())
