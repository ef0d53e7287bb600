"""Texts of the real model and its tokenizer, told piece by piece."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import another_engine, ask, chat
from test_engine_partial_text import a_generation

from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous import ContinuousEngine

pytestmark = pytest.mark.model

SCRIPTS = {
    "Latin": "Ça coûte 3,50 €: l'œuvre naïve d'un garçon — “déjà vu”!  Two  spaces,\n\n\ttabs.",
    "Vietnamese": "Tiếng Việt có nhiều dấu, viết tổ hợp: ế ộ ữ.",
    "combining marks": "Z̸̢͝a̵l̶g̴o̷ e\u0301 n\u0303 a\u0308",
    "Cyrillic": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Greek": "Ταχίστη αλώπηξ βαφής ψημένη γη, δρασκελίζει υπέρ νωθρού κυνός.",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم، مَرْحَبًا!",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה, שָׁלוֹם.",
    "Devanagari": "नमस्ते दुनिया, क्षत्रिय ज्ञान — ऋषियों को सताने वाले।",
    "Bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।",
    "Tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์",
    "Chinese": "天地玄黃,宇宙洪荒。𠮷野家",
    "Japanese": "いろはにほへと ちりぬるを、カタカナ、漢字。",
    "Korean": "다람쥐 헌 쳇바퀴에 타고파. 한글",
    "Georgian": "გთხოვთ ახლავე გაიაროთ რეგისტრაცია",
    "Amharic": "ሰላም ዓለም፣ ጤና ይስጥልኝ።",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 1️⃣ ❤️‍🔥 🤷🏿‍♀️ ok",
    "code": "def f(x):\n    return {\"a\": [x ** 2, 'b']}  # done\r\n",
}


def tell(checkpoint: Checkpoint, token_ids: list[int]) -> tuple[list[str], str]:
    """The pieces of a sequence, and its text."""
    told: list[str] = []
    generation = a_generation(checkpoint, on_text=lambda _, text: told.append(text))
    for count in range(1, len(token_ids) + 1):
        choice = generation.sequences[0].advance(token_ids[:count], finished=count == len(token_ids))
    assert choice is not None
    return told, choice.text


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_comes_through_in_pieces_as_it_is(checkpoint: Checkpoint, script: str) -> None:
    text = SCRIPTS[script]
    pieces, final = tell(checkpoint, checkpoint.tokenizer(text)["input_ids"])
    assert "".join(pieces) == final == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 5


def test_any_tokens_join_to_the_text_of_all_of_them(checkpoint: Checkpoint) -> None:
    decode = partial(checkpoint.tokenizer.decode, clean_up_tokenization_spaces=False)

    # Few characters have a token of their own: most of the lower ids are single bytes.
    @settings(max_examples=60)
    @given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, len(checkpoint.tokenizer) - 1)), min_size=1))
    def check(token_ids: list[int]) -> None:
        pieces, text = tell(checkpoint, token_ids)
        assert "".join(pieces) == text == decode(token_ids)

    check()


def test_requests_that_are_told_get_the_texts_that_they_get_untold(engine: ContinuousEngine) -> None:
    requests = [
        chat("Count from one to ten.", max_tokens=14, temperature=0),
        chat("Name two colours.", max_tokens=8, seed=3, n=2),
        chat("Count from one to ten.", max_tokens=14, temperature=0, stop=["three", "3"]),
        ask("Some emoji: 🦆🦆🦆", max_tokens=9, seed=1, temperature=1.5, skip_special_tokens=False),
    ]
    texts: list[dict[int, str]] = [defaultdict(str) for _ in requests]
    at_end: dict[int, Any] = {}

    def on_text(number: int, choice: int, text: str) -> None:
        texts[number][choice] += text

    futures = [engine.submit(request, partial(on_text, number)) for number, request in enumerate(requests)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: at_end.update({number: dict(texts[number])}))
    untold = [future.result() for future in [engine.submit(request) for request in requests]]  # in the same batch
    for number, future in enumerate(futures):
        told = {choice.index: choice.text for choice in future.result(timeout=120).choices}
        assert told == at_end[number] == {choice.index: choice.text for choice in untold[number].choices}
    assert futures[2].result().finish_reason == "stop"


def test_a_cancelled_request_is_told_nothing_more(checkpoint: Checkpoint) -> None:
    told: list[str] = []
    with another_engine(checkpoint, max_batch=1) as engine:
        request = ask("Once upon a time", max_tokens=500, ignore_eos=True)
        future = engine.submit(request, lambda _, text: told.append(text))
        while not told:
            time.sleep(0.01)
        future.cancel()
        assert engine.submit(ask("a", max_tokens=2)).result(timeout=60)
        count = len(told)
        assert engine.submit(ask("a", max_tokens=2)).result(timeout=60)
        assert len(told) == count < 100
