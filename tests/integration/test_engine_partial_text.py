"""The text that a request has so far, while it is still being generated."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

import pytest
from test_engine import another_engine, ask, eventually

from promptmill.protocol import Choice
from promptmill_worker.admission import Admitted
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.engine import OnText
from promptmill_worker.generation import Generation

pytestmark = pytest.mark.model


def test_the_text_so_far_grows_into_the_text_and_is_gone_at_its_end(checkpoint: Checkpoint) -> None:
    with another_engine(checkpoint, max_batch=1) as engine:
        future = engine.submit(ask("Once upon a time", max_tokens=60, ignore_eos=True, temperature=0))
        waiting = engine.submit(ask("Once upon a time", max_tokens=60, ignore_eos=True))
        seen = [""]

        def sees_more() -> bool:
            text = engine.partial_text(future)
            seen.extend([text] if len(text) > len(seen[-1]) else [])
            return len(seen) > 5 or future.done()

        eventually(sees_more)
        assert engine.partial_text(waiting) == ""
        whole = future.result(timeout=120).text
        assert len(seen) > 5
        assert all(whole.startswith(text) for text in seen)
        assert len(seen[-1]) < len(whole)
        assert engine.partial_text(future) == ""
        eventually(lambda: engine.partial_text(waiting))
        assert waiting.cancel()
        assert engine.partial_text(waiting) == engine.partial_text(Future()) == ""


def test_the_text_so_far_never_ends_in_half_a_character(checkpoint: Checkpoint) -> None:
    text = "Glück 🦆🦆 für 東京"
    token_ids = checkpoint.tokenizer(text)["input_ids"]
    assert checkpoint.tokenizer.decode(token_ids[:-1]).endswith("\ufffd")
    generation = a_generation(checkpoint)
    seen = []
    for count in range(1, len(token_ids) + 1):
        assert generation.sequences[0].advance(token_ids[:count], finished=False) is None
        seen.append(generation.partial_text())
    assert seen[-1] == text
    assert all(text.startswith(so_far) for so_far in seen)
    assert len(set(seen)) > 5


def test_a_first_choice_that_ended_before_the_others_is_the_text_so_far(checkpoint: Checkpoint) -> None:
    generation = a_generation(checkpoint, n=2)
    assert not generation.end(Choice(index=1, text="the second", finish_reason="stop"))
    assert generation.partial_text() == ""
    generation = a_generation(checkpoint, n=2)
    assert not generation.end(Choice(index=0, text="the first", finish_reason="stop"))
    assert generation.partial_text() == "the first"


def a_generation(checkpoint: Checkpoint, n: int = 1, on_text: OnText | None = None) -> Generation:
    """A request that no engine runs."""
    decode = partial(checkpoint.tokenizer.decode, clean_up_tokenization_spaces=False)
    return Generation(ask("a", n=n), Admitted([1], 99, frozenset()), "demo", decode, "0", on_text)
