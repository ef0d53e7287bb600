"""The main job on the real model: through broker, worker and back, against transformers' own generate()."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from promptmill import Client, PromptTooLongError
from promptmill.embedded import EmbeddedBroker
from promptmill.local_worker import LocalWorker
from promptmill_worker.checkpoint import Checkpoint

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def client(
    embedded_broker: EmbeddedBroker, model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A client of one worker with the demo model in float32."""
    url = embedded_broker.url
    options = ["--model", model_path, "--served-name", "smollm2", "--dtype", "float32", "--threads", "1"]
    log = tmp_path_factory.mktemp("main-job") / "worker.log"
    with LocalWorker(url, options, Path(log)) as worker, Client(url, model="smollm2") as client:
        worker.wait_until_ready(client)
        yield client


def generate(checkpoint: Checkpoint, question: str, max_tokens: int) -> str:
    """The greedy answer of the library itself, one prompt at a time."""
    inputs = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = checkpoint.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return checkpoint.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_texts_through_the_queue_equal_generate(
    client: Client, checkpoint: Checkpoint, questions: list[str]
) -> None:
    lengths = [3 + index % 6 for index in range(len(questions))]
    tasks = [
        client.submit(messages=[{"role": "user", "content": question}], max_tokens=length, temperature=0)
        for question, length in zip(questions, lengths, strict=True)
    ]
    # Meanwhile the library answers them here.
    expected = [generate(checkpoint, question, length) for question, length in zip(questions, lengths, strict=True)]
    results = [task.result(timeout_s=300) for task in tasks]

    assert len(results) == 64
    assert [result.text for result in results] == expected
    assert all(result.attempts == 1 and result.model == "smollm2" and result.worker for result in results)
    assert [result.usage.completion_tokens for result in results] == lengths


def test_a_mapped_chat_equals_the_same_chat_submitted_alone(client: Client, questions: list[str]) -> None:
    chats = [[{"role": "user", "content": question}] for question in questions[:8]]
    mapped = [result.text for result in client.map(chats, max_tokens=6, temperature=0.9, seed=5)]
    alone = [client.generate(messages=chat, max_tokens=6, temperature=0.9, seed=5).text for chat in chats]
    assert mapped == alone


def test_a_prompt_beyond_the_context_is_refused_with_both_lengths_and_harms_nobody(client: Client) -> None:
    results = list(client.map(["one two " * 9000, "Once upon a time"], max_tokens=4, on_error="yield"))
    assert isinstance(results[0].error, PromptTooLongError)
    assert results[0].error.prompt_tokens > results[0].error.limit_tokens > 8000
    assert results[1].text
