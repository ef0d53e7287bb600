"""Workers of the real model that are killed again and again, and a broker: no text may change."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import free_port
from storm import patient_client
from storm_kept import KeptWorker, send, worker_name
from storm_recovery import claimed_by
from test_broker_loss import kill_and_restart

from promptmill import Client, GenerationResult
from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names
from promptmill.protocol import GenerationRequest

pytestmark = [pytest.mark.soak, pytest.mark.model, pytest.mark.timeout(1800)]

QUESTIONS = Path(__file__).parent.parent / "data" / "gsm8k_64.jsonl"
PROMPTS = 300
KILLS = 8
NAMES = Names("promptmill:")
OPTIONS = (
    *("--engine", "transformers", "--served-name", "smollm2", "--dtype", "float32", "--threads", "1"),
    *("--max-model-len", "512", "--max-batch", "8"),
)


def requests() -> list[GenerationRequest]:
    """Questions, and beginnings of them, each with a length of its own."""
    questions = [json.loads(line)["question"].split() for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    made = []
    for number in range(PROMPTS):
        words = questions[number % len(questions)]
        kept = len(words) * (5 - number // len(questions)) // 5
        made.append(GenerationRequest.of(" ".join(words[:kept]), max_tokens=4 + number % 9, temperature=0))
    return made


class Workers:
    """Some workers under launchers, of one broker."""

    def __init__(self, broker: EmbeddedBroker, folder: Path, count: int) -> None:
        assert broker.tcp_url is not None
        options = (*OPTIONS, "--model", str(demo_model_path()))
        self._redis = patient_client(broker.tcp_url)
        self.all = [
            KeptWorker(broker.tcp_url, folder, f"model{number}", options, True, random.Random(number))
            for number in range(count)
        ]

    def busy(self) -> list[int]:
        """Process ids of workers that hold prompts."""
        pids = [pid for worker in self.all if (pid := worker.worker_pid) is not None]
        return [pid for pid in pids if claimed_by(self._redis, NAMES, worker_name(pid))]

    def close(self) -> None:
        """Ends all."""
        for worker in self.all:
            worker.close()
        self._redis.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


def start_map(stack: ExitStack, broker: EmbeddedBroker) -> Future[list[GenerationResult]]:
    """A map over all requests that goes on beside the test."""
    pool = stack.enter_context(ThreadPoolExecutor(1))
    client = stack.enter_context(Client(broker.url, model="smollm2"))
    return pool.submit(lambda: list(client.map_requests(requests(), chunk_size=16, on_error="yield")))


def test_a_storm_changes_no_greedy_text_of_the_real_model(
    stack: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = os.environ.get("STORM_SEED") or secrets.token_hex(4)
    chance = random.Random(seed)
    broker = stack.enter_context(EmbeddedBroker(tmp_path / "data", port=free_port()))

    undisturbed = Workers(broker, tmp_path, 1)
    stack.callback(undisturbed.close)
    began_at = time.monotonic()
    expected = start_map(stack, broker).result()
    calm_s = time.monotonic() - began_at
    undisturbed.close()

    workers = Workers(broker, tmp_path, 2)
    stack.callback(workers.close)
    began_at = time.monotonic()
    stormy = start_map(stack, broker)
    kills = restarts = 0
    while kills < KILLS and not stormy.done():
        busy = workers.busy()
        # Both at first: of a prompt that saw all the deaths there were, its own would have to be taken for the cause.
        if len(busy) < (2 if kills == 0 else 1):
            time.sleep(0.2)
            continue
        time.sleep(chance.uniform(0.5, 4.0))
        for pid in busy if kills == 0 else [chance.choice(busy)]:
            kills += send(pid, signal.SIGKILL)
        if kills >= KILLS // 2 and not restarts:
            kill_and_restart(broker, None)
            restarts = 1
    results = stormy.result()
    storm_s = time.monotonic() - began_at

    attempts = [result.attempts for result in results]
    with capsys.disabled():
        print(
            f"\nseed {seed}: {len(results)} prompts, {kills} kills; {calm_s:.0f} s undisturbed, {storm_s:.0f} s in the "
            f"storm; attempts {dict(sorted((number, attempts.count(number)) for number in set(attempts)))}"
        )
    assert (kills >= 6, restarts) == (True, 1)
    assert max(attempts) > 1
    assert [str(result.error) for result in results if result.error] == []
    assert [result.text for result in results] == [result.text for result in expected]
