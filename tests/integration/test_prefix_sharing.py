"""What requests begin with in common is computed once."""

from __future__ import annotations

from typing import Any

import pytest
from test_engine import another_engine, ask
from test_engine_memory import inspected

from promptmill_worker.checkpoint import Checkpoint

pytestmark = pytest.mark.model

SYSTEM = "You are a careful assistant who answers in one short sentence and never makes anything up. " * 18


def about(question: str, **parameters: Any) -> Any:
    """A chat with a long system prompt."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return ask(messages=messages, max_tokens=6, **parameters)


def test_a_second_request_with_the_same_system_prompt_reads_the_rest_alone_and_says_the_same(
    shallow_checkpoint: Checkpoint,
) -> None:
    read: list[int] = []
    request = about("How many legs has a spider?", seed=5)
    greedy = about("How many legs has a spider?", temperature=0)
    with another_engine(shallow_checkpoint) as fresh:
        expected = [fresh.submit(request).result(), fresh.submit(greedy).result()]
    assert expected[0].usage.prompt_tokens > 300
    with (
        another_engine(shallow_checkpoint) as engine,
        inspected(shallow_checkpoint, lambda input_ids, _: read.append(len(input_ids))),
    ):
        engine.submit(about("What is the capital of France?")).result()
        whole = sum(read)
        read.clear()
        again = [engine.submit(request).result(), engine.submit(greedy).result()]
    assert whole > 300
    assert sum(read) < 120
    assert [result.choices for result in again] == [result.choices for result in expected]


def test_requests_that_share_a_system_prompt_run_together_beyond_what_the_cache_holds_of_each(
    shallow_checkpoint: Checkpoint, questions: list[str]
) -> None:
    together: list[int] = []
    chats = [about(question[:40], temperature=0) for question in questions[:32]]
    with another_engine(shallow_checkpoint, max_batch=32) as engine:
        alone = [engine.submit(chat).result() for chat in chats]
        assert sum(result.usage.prompt_tokens for result in alone) > 1.2 * engine.info.cache_tokens
        with inspected(shallow_checkpoint, lambda _, requests: together.append(requests)):
            results = [future.result() for future in [engine.submit(chat) for chat in chats]]
    assert max(together) == 32
    assert [result.choices for result in results] == [result.choices for result in alone]
