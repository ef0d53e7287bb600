"""Our attention against the stock one: decode steps of a full batch, by turns within the same batch.

All requests begin with the same text, which the engine computes once; attention reads each one's keys all the same.
"""

from __future__ import annotations

from typing import Any

from alternation import Alternation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from workload import chats

from promptmill.protocol import GenerationRequest
from promptmill_worker.attention import attend_by_request
from promptmill_worker.batching import SENSIBLE_REQUEST_TOKENS
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.settings import EngineSettings

__all__ = ["measure"]

IN_FLIGHT = (8, 32, 64)
CONTEXT_TOKENS = (100, 500)

#: Tokens of a prompt that are its own, about.
OWN_TOKENS = 4

#: How long a cell is measured, in seconds, and the fewest and the most steps of each way.
CELL_S, FEWEST_STEPS, MOST_STEPS = 4.0, 2, 20


def measure(checkpoint: Checkpoint, settings: EngineSettings) -> dict[str, Any]:
    """For each batch and context: tokens/s of both, and their ratio."""
    cells = {}
    # A step reads no more tokens than the cache holds, which grows with max_batch.
    max_batch = max(IN_FLIGHT) * max(CONTEXT_TOKENS) // SENSIBLE_REQUEST_TOKENS * 2
    with ContinuousEngine(checkpoint, settings.model_copy(update={"max_batch": max_batch})) as engine:
        for context_tokens in CONTEXT_TOKENS:
            prefix = _text(checkpoint, context_tokens - OWN_TOKENS)
            engine.submit(_request(prefix, 1)).result()
            for in_flight in IN_FLIGHT:
                cells[f"{in_flight} x {context_tokens}"] = _cell(engine, prefix, in_flight)
    return cells


def _cell(engine: ContinuousEngine, prefix: str, in_flight: int) -> dict[str, float]:
    steps = Alternation(("ours", "stock"), lambda s, n: n >= FEWEST_STEPS and (s >= CELL_S or n >= MOST_STEPS))

    def attend(module: Any, query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        if module.layer_idx == 0:
            steps.begin_step(counts=query.size(2) == in_flight)
        if steps.way == "ours":
            return attend_by_request(module, query, key, value, *arguments, **options)
        reads = options.pop("page_reads")
        if reads.plan.reads_cache:
            key, value = reads.all()
        return sdpa_attention_forward(module, query, key, value, *arguments, **options)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        # Some tokens too many: a step that follows is needed to see the end of the last one measured.
        futures = [engine.submit(_request(f"{prefix} {number}", 2 * MOST_STEPS + 20)) for number in range(in_flight)]
        steps.wait(futures)
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend_by_request
    ours, stock = (in_flight / steps.median_s(way) for way in steps.ways)
    return {"ours": round(ours, 1), "stock": round(stock, 1), "ours / stock": round(steps.ratio, 2)}


def _request(prompt: str, max_tokens: int) -> GenerationRequest:
    return GenerationRequest.of(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def _text(checkpoint: Checkpoint, tokens: int) -> str:
    """A text of so many tokens."""
    text = " ".join(chat[0]["content"] for chat in chats(64, str(tokens)))
    return str(checkpoint.tokenizer.decode(checkpoint.tokenizer(text)["input_ids"][:tokens]))
