"""A Celery task of the site's own. What may pass is tried again; a bad request or a long prompt is not."""

from celery import shared_task

from promptmill import BrokerUnavailableError, QueueFullError
from stories.llm import llm


@shared_task(autoretry_for=(QueueFullError, BrokerUnavailableError), retry_backoff=5, max_retries=8)
def summarise(text: str) -> str:
    chat = [{"role": "user", "content": f"Summarise in one sentence: {text}"}]
    return llm().generate(messages=chat, max_tokens=100, temperature=0).text
