"""What the engine's benchmarks are run on: the demo model, and questions of GSM8K."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from promptmill.protocol import GenerationRequest

__all__ = ["chats", "machine", "requests"]

DATA = Path(__file__).parent.parent / "tests" / "data" / "gsm8k_64.jsonl"


def chats(count: int, turn: str) -> list[list[dict[str, str]]]:
    """The first sentences of ``count`` (at most 64) questions, each as a chat.

    Args:
        count: How many.
        turn: Goes into each prompt: or a later round would find its prompts' keys in the engine's cache.
    """
    lines = DATA.read_text(encoding="utf-8").splitlines()[:count]
    questions = [json.loads(line)["question"].split(".")[0] for line in lines]
    return [[{"role": "user", "content": f"Round {turn}. {question}."}] for question in questions]


def requests(count: int, turn: str, max_tokens: int, **sampling: Any) -> list[GenerationRequest]:
    """The same as requests that all generate ``max_tokens`` tokens, greedy unless ``sampling`` says otherwise."""
    options = {"temperature": 0.0, "ignore_eos": True, **sampling}
    return [GenerationRequest.of(messages=chat, max_tokens=max_tokens, **options) for chat in chats(count, turn)]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("promptmill", "torch", "transformers", "bitsandbytes")},
    }
