"""``promptmill batch``: a file of prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from promptmill.batch_file import BatchFile, run_batch
from promptmill.cli.options import client_options, given, sampling_options
from promptmill.cli.progress import PromptProgress
from promptmill.client import Client
from promptmill.sampling_params import SamplingParams

__all__ = ["batch"]


@click.command()
@click.argument("input_path", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "output_path", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--field", default="prompt", show_default=True, help="Name of the field that holds the prompt.")
@click.option("--chat", is_flag=True, help="Send prompts as a user's turn, in the model's chat template.")
@click.option("--system", help="System message of every prompt; implies --chat.")
@click.option("--max-in-flight", type=click.IntRange(1), default=1024, show_default=True)
@sampling_options
@client_options
def batch(
    input_path: Path,
    output_path: Path,
    field: str,
    chat: bool,
    system: str | None,
    max_in_flight: int,
    broker_url: str | None,
    model: str | None,
    **sampling: Any,
) -> None:
    """Run a JSONL file of prompts; answers go, line by line and in its order, to another.

    Each line of INPUT is an object with "prompt" (or the field that --field names) or "messages", and any sampling
    parameters by name, which win over the options here; other fields are ignored. A line that is wrong is reported by
    its number, here and in the output, and the others go on.

    \b
    Examples:
      promptmill batch prompts.jsonl --output answers.jsonl --max-tokens 64
      promptmill batch gsm8k.jsonl --field question --chat --temperature 0 --output answers.jsonl
    """
    if output_path.exists() and output_path.samefile(input_path):
        raise click.UsageError(f"--output {output_path} is the input itself: name another file")
    source = BatchFile(input_path, field, chat or system is not None, system, SamplingParams.of(**given(sampling)))
    console = Console(stderr=True)
    with Client(broker_url, model=model) as client:
        client.fleet()  # a broker that isn't there is found before an older output is written over
        with output_path.open("w", encoding="utf-8") as output, PromptProgress(source.count_lines()) as progress:
            for line in run_batch(client, source, max_in_flight):
                output.write(line.to_json() + "\n")
                output.flush()
                progress.count(line.result)
                if line.result.error is not None:
                    shown = f"{input_path.name}:{line.number}: {line.result.error}"
                    console.print(shown, highlight=False, markup=False)
    console.print(
        f"{progress.prompts:,} prompts, {progress.errors:,} errors, {progress.completion_tokens:,} tokens in "
        f"{progress.elapsed_s:,.1f} s ({progress.tokens_per_s:,.0f} tokens/s): {output_path}",
        highlight=False,
        markup=False,
    )
    if progress.errors:
        sys.exit(1)
