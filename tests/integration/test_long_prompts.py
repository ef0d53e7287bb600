"""Windows and truncation with the demo model's tokenizer, against the same texts sent one by one."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.errors import InvalidRequestError, PromptTooLongError
from promptmill.protocol import GenerationRequest
from promptmill_worker.admission import Admission
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine
from promptmill_worker.windows import cut_windows

pytestmark = pytest.mark.model

ask = GenerationRequest.of

#: Scripts in which this tokenizer's tokens break characters, drawn pictures of several code points among them.
SCRIPTS = (
    "naïve 日本語の文章 😀👨\u200d👩\u200d👧 ελληνικά кириллица हिन्दी עברית العربية 中文 한국어 ไทย\n\ncafe\u0301 🇪🇺 "
)


def windows_of(engine: ContinuousEngine, text: str, window: int, stride: int) -> list[str]:
    return [window.text for window in cut_windows(text, engine.token_spans(text), window, stride)]


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"seed": 7}])
def test_each_windows_text_is_what_its_text_alone_is_answered_with(
    engine: ContinuousEngine, questions: list[str], parameters: dict[str, Any]
) -> None:
    text = " ".join(questions[:3])
    parameters = {"max_tokens": 6, **parameters}
    result = engine.submit(ask(text, window_tokens=60, stride_tokens=40, **parameters)).result(timeout=300)
    windows = windows_of(engine, text, 60, 40)
    assert len(windows) > 3
    alone = []
    for number, window in enumerate(windows):
        own = {**parameters, **({"seed": 7 + number} if "seed" in parameters else {})}
        alone.append(engine.submit(ask(window, **own)).result(timeout=300))
    assert [choice.text for choice in result.choices] == [answer.text for answer in alone]
    assert result.text == "\n".join(answer.text for answer in alone)
    assert result.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)
    assert result.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)


def test_of_a_chat_each_window_of_the_last_user_message_is_answered_within_the_chat(
    engine: ContinuousEngine, questions: list[str]
) -> None:
    def chat(text: str) -> dict[str, Any]:
        system = {"role": "system", "content": "Summarise what you are given in a word."}
        return {"messages": [system, {"role": "user", "content": text}], "max_tokens": 5, "temperature": 0}

    text = " ".join(questions[:2])
    result = engine.submit(ask(**chat(text), window_tokens=64)).result(timeout=300)
    alone = [engine.submit(ask(**chat(window))).result(timeout=300) for window in windows_of(engine, text, 64, 64)]
    assert len(alone) > 1
    assert [choice.text for choice in result.choices] == [answer.text for answer in alone]


def test_windows_break_no_character_of_any_script(engine: ContinuousEngine) -> None:
    text = SCRIPTS * 3
    spans = engine.token_spans(text)
    for size in range(1, 12):
        windows = cut_windows(text, spans, size, size)
        assert "".join(window.text for window in windows) == text
        assert [window.start for window in windows[1:]] == [window.end for window in windows[:-1]]
        # A space and the first byte of a character may be one token.
        assert all(window.end - window.start <= size or len(window.text) <= 2 for window in windows)


def test_a_window_that_does_not_fit_is_refused_with_both_numbers(engine: ContinuousEngine) -> None:
    with pytest.raises(PromptTooLongError, match="window 0 and what is around it have 8,192 tokens, at most 8,191"):
        engine.submit(ask(" a" * 9_000, window_tokens=8_192)).result(timeout=300)


def test_a_tokenizer_that_tells_no_places_refuses_windows(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(engine._tokenizer), "is_fast", False)
    with pytest.raises(InvalidRequestError, match="none of the fast ones"):
        engine.submit(ask("a b", window_tokens=1)).result(timeout=300)


@pytest.fixture(scope="module")
def admission(checkpoint: Checkpoint) -> Admission:
    """The gate of an engine with a short context."""
    vocabulary = checkpoint.model.get_input_embeddings().num_embeddings
    return Admission(checkpoint.tokenizer, checkpoint.end_ids, vocabulary, limit_tokens=200)


CHAT = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "first " + "and then " * 300 + "at last the question"},
]


def test_a_truncated_chat_keeps_its_template_and_its_instructions(admission: Admission, checkpoint: Checkpoint) -> None:
    ids = admission.admit(ask(messages=CHAT, truncate_prompt_tokens=100)).prompt_ids
    assert 95 <= len(ids) <= 100
    text = checkpoint.tokenizer.decode(ids)
    whole = checkpoint.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.startswith(whole[: whole.index("first ")])
    assert text.endswith(whole[whole.index("at last the question") :])


def test_a_chat_that_is_too_long_without_its_last_message_is_refused_with_both_numbers(admission: Admission) -> None:
    with pytest.raises(
        PromptTooLongError, match=r"33 tokens besides .* more than truncate_prompt_tokens, 20"
    ) as caught:
        admission.admit(ask(messages=CHAT, truncate_prompt_tokens=20))
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (33, 20)


def test_a_truncated_prompt_keeps_what_the_tokenizer_puts_in_front(
    admission: Admission, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_beginning(request: GenerationRequest) -> list[int]:
        return [1, *checkpoint.tokenizer(request.prompt)["input_ids"]]

    monkeypatch.setattr(admission, "_tokens", with_beginning)
    ids = admission.admit(ask("one two three four five", truncate_prompt_tokens=3)).prompt_ids
    assert (ids[0], checkpoint.tokenizer.decode(ids[1:])) == (1, " four five")


def test_a_truncated_prompt_breaks_no_character_and_ends_as_the_whole(
    admission: Admission, checkpoint: Checkpoint
) -> None:
    whole = SCRIPTS + "日本"
    for limit in range(3, 40):
        ids = admission.admit(ask(whole, truncate_prompt_tokens=limit)).prompt_ids
        assert len(ids) <= limit
        assert whole.endswith(checkpoint.tokenizer.decode(ids))
