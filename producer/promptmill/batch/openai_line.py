"""OpenAI's batch lines: ``{"custom_id", "method", "url", "body"}``, the body in our own words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from promptmill.errors import InvalidRequestError
from promptmill.protocol import GenerationRequest
from promptmill.sampling_params import SamplingParams

__all__ = ["is_openai_line", "openai_request"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

#: Fields of a body that change nothing in what is generated.
IGNORED = frozenset(
    {
        "user", "metadata", "store", "stream_options", "service_tier", "safety_identifier", "parallel_tool_calls",
        "prompt_cache_key", "prompt_cache_retention",
    }
)  # fmt: skip

#: Fields for what can't be done here, and those of their values that ask for nothing.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "echo": (False,),
    "suffix": ("",),
}


def is_openai_line(fields: dict[str, Any]) -> bool:
    """Whether it is meant as one of OpenAI's."""
    return "body" in fields or "url" in fields


def openai_request(fields: dict[str, Any], params: SamplingParams) -> tuple[GenerationRequest, str]:
    """What the line asks for, and the model that it names ("" for none).

    Raises:
        InvalidRequestError: something is wrong with it, or can't be done here.
    """
    _check_line(fields)
    given = {name: value for name, value in fields["body"].items() if value is not None and name not in IGNORED}
    model = given.pop("model", "")
    if not isinstance(model, str):
        raise InvalidRequestError("model: give a name")
    for name in HARMLESS.keys() & given.keys():
        if given.pop(name) not in HARMLESS[name]:
            raise InvalidRequestError(f"{name}: this can't be done here; leave it out")
    _use_one_limit(given)
    if fields["url"] == CHAT:
        inputs, translate = {"messages": _messages(given.pop("messages", None))}, _chat_logprobs
    else:
        inputs, translate = {"prompt": _prompt(given.pop("prompt", None))}, _single_choice
    translate(given)
    _refuse_unknown(given.keys() - SamplingParams.model_fields, "the body")
    return GenerationRequest.of(**inputs, params=params, **given), model


def _check_line(fields: dict[str, Any]) -> None:
    _refuse_unknown(fields.keys() - {"custom_id", "method", "url", "body"}, "the line")
    if not isinstance(fields.get("custom_id"), str) or not fields["custom_id"]:
        raise InvalidRequestError("custom_id is missing, or no text")
    if fields.get("method", "POST") != "POST":
        raise InvalidRequestError("method: only POST is allowed")
    if fields.get("url") not in (CHAT, COMPLETIONS):
        raise InvalidRequestError(f"url: only {CHAT} and {COMPLETIONS} can be done here")
    if not isinstance(fields.get("body"), dict):
        raise InvalidRequestError("body is missing, or no object")


def _refuse_unknown(names: Iterable[str], where: str) -> None:
    if listed := ", ".join(repr(name[:80]) for name in sorted(names)[:10]):
        raise InvalidRequestError(f"{where} has fields that mean nothing here: {listed}; leave them out")


def _use_one_limit(given: dict[str, Any]) -> None:
    if "max_completion_tokens" in given:
        limit = given.pop("max_completion_tokens")
        if given.setdefault("max_tokens", limit) != limit:
            raise InvalidRequestError("max_tokens and max_completion_tokens differ: give one of them")


def _chat_logprobs(given: dict[str, Any]) -> None:
    """OpenAI's chats have two fields, a switch and a number, for our one."""
    wanted, top = given.pop("logprobs", False), given.pop("top_logprobs", None)
    if not isinstance(wanted, bool):
        raise InvalidRequestError("logprobs: true or false, in a chat; top_logprobs says how many")
    if wanted:
        given["logprobs"] = 0 if top is None else top
    elif top is not None:
        raise InvalidRequestError("top_logprobs needs logprobs to be true")


def _single_choice(given: dict[str, Any]) -> None:
    if given.pop("best_of", given.get("n", 1)) != given.get("n", 1):
        raise InvalidRequestError("best_of: this can't be done here; leave it out, or ask for n texts")
    if isinstance(given.get("logprobs"), bool):
        raise InvalidRequestError("logprobs: a number of tokens, in a completion")


def _prompt(prompt: Any) -> Any:
    if not isinstance(prompt, list):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if prompt and all(isinstance(part, str) for part in prompt):
        raise InvalidRequestError(f"prompt: a list of {len(prompt):,} prompts; give each a line of its own")
    raise InvalidRequestError("prompt: give text; token ids can't be taken here")


def _messages(messages: Any) -> Any:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    # What an answer of OpenAI's has besides, if it is put into the next question: all empty.
    told = {name: value for name, value in message.items() if name in ("role", "content") or value not in (None, [])}
    told.pop("name", None)
    _refuse_unknown(told.keys() - {"role", "content"}, where)
    if told.get("role") == "developer":
        told["role"] = "system"
    if isinstance(told.get("content"), list):
        told["content"] = _joined(told["content"], f"{where}.content")
    return told


def _joined(parts: list[Any], where: str) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"{where}: only parts of the type 'text' can be taken here")
    return "".join(map(str, texts))
