"""A worker from the hub to its card: what it loaded, how fast it is, what the fleet knows of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fake_hub import fake_hub
from tiny_models import tiny_model
from workers import a_process

from promptmill import Client

CLI = [sys.executable, "-m", "promptmill.cli"]


def test_a_worker_prints_and_publishes_a_card_of_a_model_that_it_has_from_the_hub(
    broker_url: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    with fake_hub(gated=model) as hub:
        environment = {
            "PROMPTMILL_BROKER_URL": broker_url,
            "PROMPTMILL_MEASURE_S": "1",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "huggingface"),
            "HF_TOKEN": "member",
        }
        command = [*CLI, "worker", "--model", "demo/gated", "--device", "cpu", "--max-batch", "32", "--no-restart"]
        with a_process(command, tmp_path / "log", **environment) as worker:
            worker.wait_until_ready()
            with Client(broker_url) as client:
                (record,) = client.fleet().workers
                assert client.generate("Hello", max_tokens=4).usage.completion_tokens > 0
            printed = json.loads(
                subprocess.run([*CLI, "status", "--json", "--broker-url", broker_url], capture_output=True).stdout
            )["workers"][0]
    assert list((tmp_path / "huggingface" / "hub").glob("models--demo--gated/snapshots/*/model.safetensors"))
    assert (record.parameters, record.weights_bytes) == (53_728, 214_944)
    assert (record.context_tokens, record.max_batch, record.precision) == (256, 32, "float32")
    assert record.chat_template is False
    assert record.tokens_per_s_alone > 0
    assert record.tokens_per_s_full > record.tokens_per_s_alone
    assert record.steps <= 1  # none of those that it measured itself by, but the last, which may end late
    assert {name: printed[name] for name in ("parameters", "weights_bytes", "attention", "chat_template")} == {
        "parameters": record.parameters,
        "weights_bytes": record.weights_bytes,
        "attention": record.attention,
        "chat_template": False,
    }
    assert "member" not in worker.log
    for line in (
        "  weights    53.7k parameters, float32, 210 KiB",
        f"  context    256 tokens\n  cache      {record.cache_tokens:,} tokens\n  batch      up to 32 requests",
        "  chat       no template: takes prompts, refuses messages",
        f"  speed      {record.tokens_per_s_alone:,.1f} tokens/s alone, {record.tokens_per_s_full:,.1f} in a full",
    ):
        assert line in worker.log, worker.log
