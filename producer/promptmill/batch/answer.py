"""Lines of the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from promptmill.batch.line import Ticket
from promptmill.batch.openai_answer import openai_answer
from promptmill.protocol import GenerationResult

__all__ = ["Answer", "answer_line", "may_be_ours"]

#: What every line begins with.
LINE_BEGINS = b'{"id":'


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a line."""

    ticket: Ticket
    result: GenerationResult


def answer_line(answer: Answer, simple: bool) -> bytes:
    """The line for the output, with its line break: short, or as OpenAI has it.

    Either has a field ``promptmill`` with the number of the input's line, its checksum and the digest of its request,
    by which a later run knows what is done, and with what only promptmill tells of an answer.
    """
    ticket, result = answer.ticket, answer.result
    told: dict[str, Any] = {
        "line": ticket.number,
        "checksum": f"{ticket.checksum:04x}",
        "digest": f"{ticket.digest:016x}",
    }
    if result.error is None:
        told.update(worker=result.worker, attempts=result.attempts, timings=result.timings.model_dump())
    custom_id = f"line-{ticket.number}" if ticket.custom_id is None else ticket.custom_id
    fields = {"id": custom_id, **_short(result)} if simple else openai_answer(str(custom_id), result, ticket.is_chat)
    return to_json({**fields, "promptmill": told}) + b"\n"


def may_be_ours(line: bytes) -> bool:
    """Whether ``answer_line`` may have made this line, or its beginning. After a loss of power bytes may be zeros."""
    written = line.rstrip(b"\0")
    try:
        fields = from_json(written)
    except ValueError:  # half of it
        return LINE_BEGINS.startswith(written[: len(LINE_BEGINS)])
    return isinstance(fields, dict) and "promptmill" in fields


def _short(result: GenerationResult) -> dict[str, Any]:
    if result.error is not None:
        return {"error": {"type": type(result.error).__name__, "message": result.error.message}}
    told: dict[str, Any] = {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "model": result.model,
        "usage": result.usage.model_dump(),
    }
    choices = result.choices
    if len(choices) > 1 or any(choice.logprobs is not None or choice.window is not None for choice in choices):
        told["choices"] = [choice.model_dump(exclude_none=True) for choice in choices]
    return told
