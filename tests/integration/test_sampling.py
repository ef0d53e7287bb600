"""Parameters that a request's own history decides, in the running batch, against the library and plain loops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from test_engine import ask

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine

pytestmark = pytest.mark.model

PROMPTS = ["Once upon a time", "The sky is blue and the sea is blue and", "one two three one two three one two"]


def logits_after(checkpoint: Checkpoint, token_ids: list[int]) -> torch.Tensor:
    """The model's logits for the token that follows, in float32."""
    with torch.no_grad():
        logits: torch.Tensor = checkpoint.model(torch.tensor([token_ids])).logits[0, -1].float()
    return logits


def by_hand(checkpoint: Checkpoint, prompt: str, tokens: int, **asked: Any) -> str:
    """A greedy text by the definition of the parameters, one token after the other."""
    prompt_ids = checkpoint.tokenizer(prompt)["input_ids"]
    text_ids: list[int] = []
    for _ in range(tokens):
        logits = logits_after(checkpoint, prompt_ids + text_ids)
        for token_id, bias in asked.get("logit_bias", {}).items():
            logits[token_id] += bias
        for token_id, times in Counter(text_ids).items():
            logits[token_id] -= asked.get("presence_penalty", 0) + times * asked.get("frequency_penalty", 0)
        text_ids.append(int(logits.argmax()))
    text: str = checkpoint.tokenizer.decode(text_ids)
    return text


def test_the_repetition_penalty_writes_what_generate_writes(
    shallow_engine: ContinuousEngine, shallow_checkpoint: Checkpoint
) -> None:
    tokenizer = shallow_checkpoint.tokenizer
    requests = [ask(prompt, max_tokens=16, temperature=0, repetition_penalty=1.5) for prompt in PROMPTS]
    texts = [future.result().text for future in [shallow_engine.submit(request) for request in requests]]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        out = shallow_checkpoint.model.generate(**inputs, max_new_tokens=16, do_sample=False, repetition_penalty=1.5)
        assert text == tokenizer.decode(out[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)
        assert text != shallow_engine.submit(ask(prompt, max_tokens=16, temperature=0)).result().text


@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 1.9},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -1.5, "presence_penalty": 0.5},
        {"logit_bias": {260: 4.0, 28: -100.0}, "frequency_penalty": 0.3},
    ],
    ids=str,
)
def test_other_penalties_and_biases_write_what_their_definition_says(
    shallow_engine: ContinuousEngine, shallow_checkpoint: Checkpoint, asked: dict[str, Any]
) -> None:
    requests = [ask(prompt, max_tokens=12, temperature=0, ignore_eos=True, **asked) for prompt in PROMPTS]
    texts = [future.result().text for future in [shallow_engine.submit(request) for request in requests]]
    assert texts == [by_hand(shallow_checkpoint, prompt, 12, **asked) for prompt in PROMPTS]


def test_a_biased_token_is_all_that_is_written(shallow_engine: ContinuousEngine) -> None:
    result = shallow_engine.submit(ask("Once", max_tokens=5, seed=1, logit_bias={260: 100.0})).result()
    assert result.text == " the" * 5


def test_no_end_comes_before_min_tokens(engine: ContinuousEngine, checkpoint: Checkpoint) -> None:
    (end_id,) = checkpoint.end_ids
    now = {"logit_bias": {end_id: 100.0}, "temperature": 0, "max_tokens": 9}
    assert engine.submit(ask("Once upon a time", **now)).result().usage.completion_tokens == 1
    later = engine.submit(ask("Once upon a time", min_tokens=5, **now)).result()
    assert (later.usage.completion_tokens, later.finish_reason) == (6, "stop")
    stop_id = checkpoint.tokenizer(",")["input_ids"][0]
    asked = {"stop_token_ids": [stop_id], "min_tokens": 12, "max_tokens": 12, "temperature": 0}
    assert "," not in engine.submit(ask("Once upon a time", **asked)).result().text


def test_no_stop_string_ends_a_text_before_min_tokens(engine: ContinuousEngine) -> None:
    whole = engine.submit(ask("Once upon a time", max_tokens=20, temperature=0, ignore_eos=True)).result().text
    stop = whole.split()[1]
    asked = {"max_tokens": 20, "temperature": 0, "ignore_eos": True, "stop": stop}
    early = engine.submit(ask("Once upon a time", **asked)).result()
    late = engine.submit(ask("Once upon a time", min_tokens=early.usage.completion_tokens + 1, **asked)).result()
    assert early.text == whole[: whole.index(stop)]
    second = whole.find(stop, whole.index(stop) + 1)
    assert late.text == (whole if second < 0 else whole[:second])


def test_log_probabilities_are_those_of_a_plain_forward_pass(engine: ContinuousEngine, checkpoint: Checkpoint) -> None:
    asked = {"logprobs": 3, "seed": 4, "max_tokens": 5, "n": 2, "repetition_penalty": 1.2, "ignore_eos": True}
    result = engine.submit(ask("Once upon a time", **asked)).result()
    prompt_ids = checkpoint.tokenizer("Once upon a time")["input_ids"]
    for choice in result.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs) == 5
        taken = [entry.token_id for entry in choice.logprobs]
        assert "".join(entry.token for entry in choice.logprobs) == choice.text
        for position, entry in enumerate(choice.logprobs):
            expected = logits_after(checkpoint, prompt_ids + taken[:position]).log_softmax(-1)
            assert entry.logprob == pytest.approx(expected[entry.token_id].item(), abs=1e-3)
            assert [other.token_id for other in entry.top] == expected.topk(3).indices.tolist()
            assert [other.logprob for other in entry.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-3)
    assert engine.submit(ask("Once", max_tokens=1)).result().choices[0].logprobs is None
