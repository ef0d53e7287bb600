"""Lines of a batch: what they ask for, and what they are answered with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from promptmill import (
    EngineError,
    GenerationRequest,
    GenerationResult,
    InvalidRequestError,
    PromptmillError,
    PromptTooLongError,
    SamplingParams,
    TaskExpiredError,
)
from promptmill.batch.answer import Answer, answer_line
from promptmill.batch.answer_table import AnswerTable, State
from promptmill.batch.line import Line, LineFormat, Ticket, read_line
from promptmill.batch.model_choice import ModelChoice
from promptmill.batch.seen_ids import SeenIds

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]


class Models:
    """Serves "echo", and "other"."""

    def default(self) -> str:
        return "echo"

    def named(self, model: str, is_settled: Callable[[], bool]) -> str:
        if model not in ("echo", "other"):
            raise InvalidRequestError(f"model: {model} is not served")
        return model


def read(fields: Any, **given: Any) -> Line:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return read_line(7, raw, LineFormat(**given), cast(ModelChoice, Models()), lambda number, checksum: None)


def openai(body: dict[str, Any], url: str = CHAT, **changes: Any) -> Line:
    return read({"custom_id": "a", "method": "POST", "url": url, "body": body, **changes})


def accepted(line: Line) -> GenerationRequest:
    assert isinstance(line.request, GenerationRequest), line.request
    return line.request


def sampling(line: Line) -> dict[str, Any]:
    return accepted(line).sampling.model_dump(exclude_unset=True)


def test_a_chat_and_a_completion_of_openais() -> None:
    chat = openai({"model": "other", "messages": HI, "max_completion_tokens": 5, "stop": ["x"], "n": 2, "seed": 1})
    assert (chat.model, chat.ticket.custom_id, chat.ticket.is_chat, chat.ticket.number) == ("other", "a", True, 7)
    assert accepted(chat).model_dump()["messages"] == tuple(HI)
    assert sampling(chat) == {"max_tokens": 5, "stop": ("x",), "n": 2, "seed": 1}
    completion = openai({"prompt": ["Once"], "logprobs": 3, "logit_bias": {"5": -100}, "best_of": 1}, COMPLETIONS)
    assert (completion.model, completion.ticket.is_chat, accepted(completion).prompt) == ("echo", False, "Once")
    assert sampling(completion) == {"logprobs": 3, "logit_bias": {5: -100.0}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {}),
        ({"temperature": None, "stop": None, "response_format": None}, {}),
        ({"max_tokens": 3, "max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"user": "u", "metadata": {}, "store": True, "stream": False, "stream_options": None}, {}),
        ({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "service_tier": "auto"}, {}),
        ({"top_k": 5, "repetition_penalty": 1.1, "truncate_prompt_tokens": 9},
         {"top_k": 5, "repetition_penalty": 1.1, "truncate_prompt_tokens": 9}),
    ],
)  # fmt: skip
def test_a_chats_fields_in_our_words(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sampling(openai({"messages": HI, **given})) == expected


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (openai({"messages": HI, "reasoning_effort": "low", "foo": 1}), "'foo', 'reasoning_effort'"),
        (openai({"messages": HI, "stream": True}), "stream"),
        (openai({"messages": HI, "tools": [{"type": "function"}]}), "tools"),
        (openai({"messages": HI, "response_format": {"type": "json_object"}}), "response_format"),
        (openai({"messages": HI, "top_logprobs": 2}), "top_logprobs"),
        (openai({"messages": HI, "logprobs": 2}), "logprobs"),
        (openai({"messages": HI, "max_tokens": 2, "max_completion_tokens": 3}), "max_completion_tokens"),
        (openai({"messages": HI, "temperature": 3}), "temperature: 3"),
        (openai({"messages": HI, "prompt": "x"}), "'prompt'"),
        (openai({"messages": HI, "model": "gpt-7"}), "gpt-7"),
        (openai({"messages": HI, "model": 7}), "model"),
        (openai({}), "a prompt or messages"),
        (openai({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages.0.content"),
        (openai({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "tool_calls"),
        (openai({"messages": "Hi"}), "messages"),
        (openai({"prompt": ["a", "b"]}, COMPLETIONS), "a list of 2 prompts"),
        (openai({"prompt": [1, 2]}, COMPLETIONS), "token ids"),
        (openai({"prompt": "a", "echo": True}, COMPLETIONS), "echo"),
        (openai({"prompt": "a", "suffix": "b"}, COMPLETIONS), "suffix"),
        (openai({"prompt": "a", "best_of": 2}, COMPLETIONS), "best_of"),
        (openai({"prompt": "a", "logprobs": True}, COMPLETIONS), "logprobs"),
        (openai({"messages": HI}, "/v1/embeddings"), "url"),
        (openai({"messages": HI}, method="GET"), "method"),
        (openai({"messages": HI}, custom_id=""), "custom_id"),
        (openai({"messages": HI}, priority="high"), "'priority'"),
        (openai(cast(Any, "x")), "body"),
    ],
)
def test_what_can_not_be_done_is_refused_by_its_name_and_without_the_prompt(line: Line, named: str) -> None:
    assert isinstance(line.request, InvalidRequestError)
    assert named in line.request.message
    assert "Hi" not in line.request.message


def test_messages_as_openai_knows_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "x"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    messages = accepted(openai({"messages": told})).messages or ()
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be brief."),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", "d"),
    ]


def test_options_are_the_defaults_of_both_kinds_of_lines() -> None:
    params = SamplingParams(max_tokens=9, temperature=0)
    line = {"custom_id": "a", "url": CHAT, "body": {"messages": HI, "max_completion_tokens": 3}}
    assert sampling(read(line, params=params)) == {"max_tokens": 3, "temperature": 0}
    assert sampling(read({"prompt": "a", "temperature": 1, "top_p": None}, params=params)) == {
        "max_tokens": 9,
        "temperature": 1,
    }


def test_the_digest_changes_with_all_that_the_answer_hangs_on_and_with_nothing_else() -> None:
    same = [{"prompt": "a"}, {"prompt": "a", "note": 1}, {"note": "x", "prompt": "a", "seed": None}]
    others = [{"prompt": "b"}, {"prompt": "a", "seed": 1}, {"prompt": "a", "id": "x"}, {"prompt": "a", "id": "y"}]
    digests = [read(fields).ticket.digest for fields in (*same, *others)]
    assert len(set(digests[:3])) == 1
    assert len(set(digests)) == 5
    assert read({"prompt": "a"}, chat=True).ticket.digest not in digests
    assert read({"prompt": "a"}, params=SamplingParams(max_tokens=1)).ticket.digest not in digests
    assert openai({"messages": HI}).ticket.digest != openai({"messages": HI, "model": "other"}).ticket.digest


RESULT = GenerationResult.model_validate(
    {
        "id": "task",
        "model": "echo",
        "choices": [
            {
                "index": index,
                "text": "a b",
                "finish_reason": "stop",
                "logprobs": [
                    {"token": "a", "token_id": 1, "logprob": -1, "top": [{"token": "a", "token_id": 1, "logprob": -1}]},
                    {"token": " b", "token_id": 2, "logprob": -2},
                ],
            }
            for index in range(2)
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "worker": "w",
    }
)


def line_of(result: GenerationResult, simple: bool = False, is_chat: bool = True) -> dict[str, Any]:
    ticket = Ticket(7, 0xDEF, 0xABC, "mine", is_chat)
    raw = answer_line(Answer(ticket, result), simple)
    assert raw.startswith(b'{"id":')
    assert raw.count(b"\n") == 1
    told = cast(dict[str, Any], json.loads(raw))
    assert told["promptmill"].items() >= {"line": 7, "checksum": "0def", "digest": "0000000000000abc"}.items()
    return told


def test_an_answer_to_a_chat_is_openais_object() -> None:
    line = line_of(RESULT)
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("mine", None, 200)
    assert (line["id"], line["response"]["request_id"]) == ("batch_req_task", "task")
    body = line["response"]["body"]
    assert (body["object"], body["id"], body["model"]) == ("chat.completion", "chatcmpl-task", "echo")
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    choice = body["choices"][1]
    assert (choice["index"], choice["finish_reason"]) == (1, "stop")
    assert choice["message"] == {"role": "assistant", "content": "a b", "refusal": None}
    token = choice["logprobs"]["content"][0]
    assert token == {"token": "a", "logprob": -1.0, "bytes": [97],
                     "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}]}  # fmt: skip


def test_an_answer_to_a_completion_is_openais_object() -> None:
    body = line_of(RESULT, is_chat=False)["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "a b"
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["a", " b"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"a": -1.0}, {}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError("no"), 400, "InvalidRequestError"),
        (PromptTooLongError("no", 5, 4), 400, "context_length_exceeded"),
        (EngineError("no"), 500, "EngineError"),
        (TaskExpiredError("no"), None, "batch_expired"),
    ],
)
def test_a_failure_is_told_as_openai_does(error: PromptmillError, status: int | None, code: str) -> None:
    line = line_of(GenerationResult(error=error))
    if status is None:
        assert (line["response"], line["error"]) == (None, {"code": code, "message": "no"})
        return
    assert (line["error"], line["response"]["status_code"]) == (None, status)
    assert line["response"]["body"]["error"]["code"] == code
    assert line["response"]["body"]["error"]["message"] == "no"


def test_short_lines() -> None:
    line = line_of(RESULT, simple=True)
    assert (line["id"], line["text"], line["finish_reason"], len(line["choices"])) == ("mine", "a b", "stop", 2)
    assert line["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    failed = line_of(GenerationResult(error=EngineError("no")), simple=True)
    assert failed["error"] == {"type": "EngineError", "message": "no"}


def test_the_table_knows_what_a_dictionary_would() -> None:
    draw = random.Random(7)
    table, known = AnswerTable(), {}
    for place in range(3000):
        number = draw.randrange(1, 500)
        if draw.random() < 0.1:
            end = number + draw.randrange(20)
            table.drop(number, end)
            known = {key: row for key, row in known.items() if not number <= key < end}
        else:
            state = State(draw.randrange(1, 3))
            table.put(number, number, number * 7, state, place)
            known[number] = (state, place)
    assert {number: table.state(number, number * 7) for number in known} == {key: row[0] for key, row in known.items()}
    assert table.state(1, 8) is table.state(10**9, 8) is State.OPEN
    assert all(table.checksum(number, state) == number for number, (state, _) in known.items())
    assert table.checksum(0, State.ANSWERED) is table.checksum(10**9, State.ANSWERED) is None
    assert list(table.places()) == [place for _, (_, place) in sorted(known.items())]
    assert table.count(State.ANSWERED) == sum(state == State.ANSWERED for state, _ in known.values())
    assert all(table.holds(number, place) for number, (_, place) in known.items())
    assert not table.is_in_order()
    table.drop(1)
    assert table.count(*State) == table.count(State.OPEN)


def test_ids_are_known_again_however_many_there_are() -> None:
    seen = SeenIds()
    assert all(seen.add(f"id {number}") for number in range(5000))
    assert not any(seen.add(f"id {number}") for number in range(0, 5000, 7))
