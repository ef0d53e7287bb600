"""A submitter that sees everything: also what a client would not notice, such as an answer told twice."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence

from brokers import client_of
from workers import wait_until

from promptmill import Client
from promptmill.ledger import Entry, Ledger
from promptmill.names import Names, Priority, lane_name, queue_name
from promptmill.protocol import GenerationRequest, GenerationResult, answer_from_wire, requests_to_wire
from promptmill.task import task_id


class Submitter:
    """Enters prompts straight into the ledger, and never trims its reply stream."""

    def __init__(self, broker_url: str, model: str = "echo") -> None:
        self.redis = client_of(broker_url)
        self.names = Names("promptmill:")
        self.ledger = Ledger(self.redis, self.names)
        self._lane = lane_name(queue_name(model), Priority.NORMAL)
        self._stream = self.names.replies(uuid.uuid4().hex)
        #: Prompts by task id.
        self.prompts: dict[str, str] = {}

    def submit(self, prompts: Sequence[str], chunk_size: int = 1) -> list[str]:
        """Enters prompts; returns their tasks' ids."""
        added: list[str] = []
        for start in range(0, len(prompts), chunk_size):
            chunk = prompts[start : start + chunk_size]
            record_id = uuid.uuid4().hex
            requests = requests_to_wire([GenerationRequest.of(prompt, max_tokens=100_000) for prompt in chunk])
            self.ledger.enter([Entry(record_id, self._lane, requests, len(chunk), self._stream)])
            ids = [task_id(record_id, position) for position in range(len(chunk))]
            self.prompts.update(zip(ids, chunk, strict=True))
            added += ids
        return added

    def told(self) -> Counter[str]:
        """How often each task's answer was told."""
        entries = [fields for _, fields in self.redis.xrange(self._stream)]
        return Counter(
            task_id(fields[b"record"].decode(), int(position))
            for fields in entries
            for position in fields
            if position != b"record"
        )

    def results(self) -> dict[str, GenerationResult]:
        """All answers by task id, as they were told first."""
        found: dict[str, GenerationResult] = {}
        for _, fields in self.redis.xrange(self._stream):
            record_id = fields.pop(b"record").decode()
            for position, wire in fields.items():
                answer = answer_from_wire(wire)
                assert isinstance(answer, GenerationResult), json.loads(wire)["error"]["type"]
                found.setdefault(task_id(record_id, int(position)), answer)
        return found

    def wait(self, timeout_s: float) -> float:
        """Waits until all are answered; returns how long that took, in seconds."""
        return wait_until(lambda: self.told().keys() >= self.prompts.keys(), "all are answered", timeout_s)

    def check(self) -> dict[str, GenerationResult]:
        """Asserts that each prompt has its own answer, and was told it once; returns the answers."""
        results = self.results()
        assert {task: result.text for task, result in results.items()} == {
            task: " ".join(prompt.split()) for task, prompt in self.prompts.items()
        }
        assert set(self.told().values()) == {1}
        assert not list(self.redis.scan_iter(self.names.record("*"))), "a record is left over"
        return results


def count_deliveries(client: Client) -> Counter[str]:
    """How often each answer comes through the reply stream of ``client``, as it goes on."""
    told: Counter[str] = Counter()
    replies = client._session._replies
    deliver = replies._deliver

    def count_and_deliver(fields: dict[bytes, bytes]) -> None:
        record_id = fields[b"record"].decode()
        told.update(task_id(record_id, int(position)) for position in fields if position != b"record")
        deliver(fields)

    replies._deliver = count_and_deliver  # type: ignore[method-assign]
    return told
