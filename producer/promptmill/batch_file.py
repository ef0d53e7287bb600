"""Files of prompts: one JSON object a line in, one out."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.client import Client
from promptmill.errors import InvalidRequestError, error_to_wire
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill.sampling_params import SamplingParams

__all__ = ["AnsweredLine", "BatchFile", "run_batch"]


@dataclass(frozen=True)
class AnsweredLine:
    """One line of the input, and what came of it."""

    #: Counted from 1.
    number: int
    result: GenerationResult

    def to_json(self) -> str:
        """The line's object for the output: ``line``, and either the result's fields or ``error``."""
        result = self.result
        if result.error is not None:
            return json.dumps({"line": self.number, "error": error_to_wire(result.error)}, ensure_ascii=False)
        fields = result.model_dump(mode="json", exclude={"index"})
        shown = {"line": self.number, "text": result.text, "finish_reason": result.finish_reason, **fields}
        return json.dumps(shown, ensure_ascii=False)


@dataclass(frozen=True)
class BatchFile:
    """A JSONL file of prompts.

    Args:
        path: The file, in UTF-8.
        field: Which field of a line holds its prompt.
        chat: Whether a prompt is sent as a user's turn.
        system: System message of every such chat.
        params: Sampling parameters of lines that don't say otherwise.
    """

    path: Path
    field: str
    chat: bool
    system: str | None
    params: SamplingParams

    def count_lines(self) -> int | None:
        """How many prompts there are; lines of white space don't count. None of a pipe, which is read once."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def requests(self) -> Iterator[tuple[int, GenerationRequest | InvalidRequestError]]:
        """(line number, its request, or what is wrong with it) of each line."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, self._parse(line)

    def _parse(self, line: bytes) -> GenerationRequest | InvalidRequestError:
        try:
            fields = json.loads(line)
        except UnicodeDecodeError:
            return InvalidRequestError("not a line of JSON: not UTF-8")
        except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, or 5,000 brackets
            return InvalidRequestError(f"not a line of JSON: {getattr(error, 'msg', 'too deep, or a number too long')}")
        if not isinstance(fields, dict):
            return InvalidRequestError(f"a line is a JSON object, this is a {type(fields).__name__}")
        try:
            return self._request(fields)
        except InvalidRequestError as error:
            return error

    def _request(self, fields: dict[str, Any]) -> GenerationRequest:
        overrides = {
            name: value
            for name, value in fields.items()
            if name in SamplingParams.model_fields or name == "max_completion_tokens"
        }
        messages, prompt = fields.get("messages"), fields.get(self.field)
        if messages is None and prompt is None:
            raise InvalidRequestError(f"the line has neither {self.field!r} nor 'messages'")
        if prompt is not None and messages is None and self.chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            messages, prompt = [*system, {"role": "user", "content": prompt}], None
        return GenerationRequest.of(prompt, messages, self.params, **overrides)


def run_batch(client: Client, source: BatchFile, max_in_flight: int) -> Iterator[AnsweredLine]:
    """Runs every line of ``source``; yields them in the order of the file, wrong lines among them.

    Raises:
        PromptmillError: as ``Client.map``; a failed prompt is no reason to.
    """
    #: Numbers of the lines that were read and are not yielded yet.
    numbers: deque[int] = deque()

    def requests() -> Iterator[GenerationRequest | InvalidRequestError]:
        for number, request in source.requests():
            numbers.append(number)
            yield request

    for result in client.map_requests(requests(), max_in_flight=max_in_flight, on_error="yield"):
        yield AnsweredLine(numbers.popleft(), result)
