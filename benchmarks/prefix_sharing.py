"""Prefix sharing on and off: 32 chats under one system prompt of 300 tokens."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any
from unittest.mock import patch

from transformers.generation.configuration_utils import ContinuousBatchingConfig
from workload import chats

from promptmill.protocol import GenerationRequest
from promptmill_worker import batching
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.settings import EngineSettings

__all__ = ["measure"]

IN_FLIGHT = 32
SYSTEM_TOKENS = 300
TOKENS = 8


def measure(checkpoint: Checkpoint, settings: EngineSettings, rounds: int) -> dict[str, Any]:
    """Median seconds for all chats, with and without, and their ratio; each round in engines of its own."""
    work = _requests(checkpoint)
    took_s: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for shared, of_way in took_s.items():
            config = partial(ContinuousBatchingConfig, allow_block_sharing=shared)
            with (
                patch.object(batching, "ContinuousBatchingConfig", config),
                ContinuousEngine(checkpoint, settings.model_copy(update={"max_batch": IN_FLIGHT})) as engine,
            ):
                began_at = time.perf_counter()
                for future in [engine.submit(request) for request in work]:
                    future.result()
                of_way.append(time.perf_counter() - began_at)
    with_s, without_s = statistics.median(took_s[True]), statistics.median(took_s[False])
    return {"on, s": round(with_s, 1), "off, s": round(without_s, 1), "off / on": round(without_s / with_s, 2)}


def _requests(checkpoint: Checkpoint) -> list[GenerationRequest]:
    text = " ".join(chat[0]["content"] for chat in chats(64, "system"))
    tokenizer = checkpoint.tokenizer
    system = {"role": "system", "content": tokenizer.decode(tokenizer(text)["input_ids"][:SYSTEM_TOKENS])}
    return [
        GenerationRequest.of(messages=[system, *chat], max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        for chat in chats(IN_FLIGHT, "prefix")
    ]
