"""A worker's card: what it has loaded and how fast that is, in a few lines of its log."""

from __future__ import annotations

from promptmill_worker.engine import EngineInfo
from promptmill_worker.sizes import shown

__all__ = ["card", "card_rows"]


def card(info: EngineInfo) -> str:
    """What an engine says of itself, a line for each fact."""
    return "\n".join(f"  {name:<10} {value}" for name, value in card_rows(info).items())


def card_rows(info: EngineInfo) -> dict[str, str]:
    """The same by the fact's name; what an engine doesn't say is left out."""
    rows = {
        "model": info.model,
        "engine": _joined(info.engine, info.device and f"on {info.device}"),
        "because": info.reason,
        "weights": _joined(
            info.parameters and f"{_count(info.parameters)} parameters",
            info.precision,
            info.weights_bytes and shown(info.weights_bytes),
        ),
        "context": f"{info.context_tokens:,} tokens",
        "cache": info.cache_tokens and f"{info.cache_tokens:,} tokens",
        "batch": f"up to {info.max_batch:,} requests",
        "attention": info.attention,
        "chat": None if info.chat_template is None else _chat(info.chat_template),
        "speed": info.tokens_per_s_full
        and f"{info.tokens_per_s_alone:,.1f} tokens/s alone, {info.tokens_per_s_full:,.1f} in a full batch",
    }
    return {name: str(value) for name, value in rows.items() if value}


def _chat(has_template: bool) -> str:
    return "has a template for messages" if has_template else "no template: takes prompts, refuses messages"


def _count(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return str(parameters)


def _joined(*parts: str | int) -> str:
    return ", ".join(str(part) for part in parts if part)
