"""A chain and a chord of an application that has a Celery of its own, and nothing of promptmill.

pip install 'celery[redis]'; celery -A celery_canvas worker &  python celery_canvas.py
"""

import os
from typing import Any

from celery import Celery, chain, chord, group
from celery.canvas import Signature

BROKER_URL = os.environ["CELERY_BROKER_URL"]
app = Celery("celery_canvas", broker=BROKER_URL, backend=BROKER_URL)


def generate(**arguments: Any) -> Signature:
    """A call of promptmill's worker for the model ``smollm2``: in a chain it continues the text of the step before."""
    return app.signature("promptmill.generate", kwargs=arguments, queue="promptmill.smollm2")


@app.task
def headline(answer: dict[str, Any]) -> str:
    return answer["text"].strip().capitalize()


@app.task
def report(answers: list[dict[str, Any]]) -> str:
    return "\n".join(f"- {answer['text'].strip()}" for answer in answers)


def story(beginning: str) -> Signature:
    """Generates, goes on from what was generated, and ends in a task of our own."""
    return chain(generate(prompt=beginning, max_tokens=40), generate(max_tokens=20), headline.s())


def survey(questions: list[str]) -> Signature:
    """All questions at once; then one task of our own gets all answers, in the order of the questions."""
    chats = ([{"role": "user", "content": question}] for question in questions)
    return chord(group(generate(messages=chat, max_tokens=60) for chat in chats), report.s())


if __name__ == "__main__":
    print(story("Once upon a time").apply_async().get(timeout=600))
    print(survey(["Why is the sky blue?", "Why is grass green?"]).apply_async().get(timeout=600))
