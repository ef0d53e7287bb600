"""A Celery task of the site's own. What may pass is tried again; a bad request or a long prompt is not."""

from typing import Any

from celery import shared_task

from promptmill import BrokerUnavailableError, QueueFullError
from stories.llm import llm


@shared_task(bind=True, acks_late=True, autoretry_for=(QueueFullError, BrokerUnavailableError), retry_backoff=5)
def summarise(self: Any, text: str) -> str:
    chat = [{"role": "user", "content": f"Summarise in one sentence: {text}"}]
    # Celery may run a task twice: the key makes it one prompt.
    return llm().generate(messages=chat, max_tokens=100, temperature=0, idempotency_key=self.request.id).text
