"""``promptmill demo``: the main job, on an embedded broker and a small real model."""

from __future__ import annotations

import json
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptmill.cli.options import option
from promptmill.cli.progress import PromptProgress
from promptmill.client import Client
from promptmill.demo_model import demo_model_path
from promptmill.embedded import EmbeddedBroker
from promptmill.errors import NoWorkerError
from promptmill.fleet import WorkerRecord
from promptmill.local_worker import LocalWorker
from promptmill.protocol import GenerationResult

__all__ = ["demo"]

SERVED_NAME = "smollm2"


@click.command()
@option(
    "--max-tokens", type=click.IntRange(1, 1000), default=48, show_default=True, help="The most tokens of an answer."
)
def demo(max_tokens: int) -> None:
    """Answer 24 maths questions on this machine.

    Starts a broker and a worker with SmolLM2-135M, and stops both at the end.

    \b
    Example:
      promptmill demo
    """
    console = Console()
    questions = demo_questions()
    options = ["--model", str(demo_model_path()), "--served-name", SERVED_NAME]
    with tempfile.TemporaryDirectory(prefix="promptmill-demo-") as folder:
        console.print("Starting a broker and a worker; the first time the model is converted, which takes a minute …")
        log = Path(folder, "worker.log")
        with EmbeddedBroker() as broker, LocalWorker(broker.url, options, log) as worker, Client(broker.url) as client:
            before = worker.wait_until_ready(client)
            console.print(f"{before.served_name} on {before.device} in {before.precision}\n", highlight=False)
            chats = [[{"role": "user", "content": question}] for question in questions]
            with PromptProgress(len(chats)) as progress:
                results = []
                for result in client.map(chats, max_tokens=max_tokens, temperature=0.0):
                    results.append(result)
                    progress.count(result)
            after = _next_record(client, before.name, len(results))
    console.print(_table(questions, results))
    console.print(_summary(results, progress, after), highlight=False)


def demo_questions() -> list[str]:
    """24 problems of GSM8K."""
    text = (files("promptmill") / "demo_data" / "gsm8k_24.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["question"] for line in text.splitlines()]


def _next_record(client: Client, worker_name: str, prompts: int) -> WorkerRecord:
    """The worker's record once it counts all that was done."""
    give_up_at = time.monotonic() + 30.0
    while time.monotonic() < give_up_at:
        for record in client.fleet().workers:
            if record.name == worker_name and record.prompts_done >= prompts:
                return record
        time.sleep(0.2)
    raise NoWorkerError(f"worker {worker_name} is gone")


def _table(questions: list[str], results: list[GenerationResult]) -> Table:
    table = Table(expand=True)
    table.add_column(justify="right")
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column("answer begins", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("tokens", justify="right")
    for number, (question, result) in enumerate(zip(questions, results, strict=True), start=1):
        # Text, not str: rich would read square brackets as markup.
        answer = Text(" ".join(result.text.split()))
        table.add_row(str(number), Text(question), answer, str(result.usage.completion_tokens))
    return table


def _summary(results: list[GenerationResult], progress: PromptProgress, record: WorkerRecord) -> str:
    queued = sorted(result.timings.queued_s for result in results)
    return (
        f"\n{progress.prompts} prompts, {progress.completion_tokens:,} tokens in {progress.elapsed_s:.1f} s: "
        f"[bold]{progress.tokens_per_s:,.0f} tokens/s[/bold]\n"
        f"average batch {record.completion_tokens / max(record.steps, 1):.1f} prompts a step; "
        f"queue time median {queued[len(queued) // 2] * 1000:.0f} ms, longest {queued[-1] * 1000:.0f} ms"
    )
