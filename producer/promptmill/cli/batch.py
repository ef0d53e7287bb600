"""``promptmill batch``: a file of prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptmill.batch import Batch, BatchOptions, LineFormat
from promptmill.batch.answer import Answer
from promptmill.cli.interrupts import INTERRUPTED
from promptmill.cli.options import client_options, given, json_option, option, priority_option, sampling_options
from promptmill.cli.progress import PromptProgress, duration
from promptmill.client import Client
from promptmill.sampling_params import SamplingParams

__all__ = ["batch"]

#: So many failed lines are told one by one; the file has all.
SHOWN_ERRORS = 20

_FILE = click.Path(dir_okay=False, path_type=Path, allow_dash=True)


@click.command()
@click.argument(
    "input_path", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True)
)
@option("--output", "output_path", required=True, type=_FILE, help='File of the answers; "-": standard output.')
@option(
    "--errors",
    "errors_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the failed lines, which else are in the output.",
)
@option("--simple", is_flag=True, help="Write short lines: id, text, finish_reason, model, usage.")
@option("--ordered", is_flag=True, help="When all is done, put the answers into the order of INPUT.")
@option("--retry-failed", is_flag=True, help="Run lines again that have failed in an earlier run.")
@option("--field", default="prompt", show_default=True, help="Name of the field that holds the prompt.")
@option("--chat", is_flag=True, help="Send prompts as a user's turn, in the model's chat template.")
@option("--system", help="System message of every prompt; implies --chat.")
@option("--ignore-model", is_flag=True, help="Have one model answer all lines, whatever they name.")
@option("--max-in-flight", type=click.IntRange(1), stands_for="by the fleet", help="The most prompts sent at once.")
@priority_option
@option("--timeout-s", type=float, stands_for=86400, help="Deadline of each prompt from its sending, in seconds.")
@json_option
@sampling_options
@client_options
def batch(
    input_path: Path,
    output_path: Path,
    errors_path: Path | None,
    field: str,
    chat: bool,
    system: str | None,
    as_json: bool,
    broker_url: str | None,
    model: str | None,
    simple: bool,
    ordered: bool,
    retry_failed: bool,
    ignore_model: bool,
    max_in_flight: int | None,
    priority: Any,
    timeout_s: float | None,
    **sampling: Any,
) -> None:
    """Run a file of prompts; run it again to resume.

    Each line of INPUT ("-": standard input) is one of OpenAI's batch lines, or an object with "prompt" (or the field
    that --field names) or "messages", perhaps "id" or "custom_id", and any sampling parameters by name; other fields of
    such a line are ignored. What a line says wins over the options here.

    Answers are written as they come, in OpenAI's batch output format or, with --simple, as short lines. Run again, the
    same command does only the lines that have no answer in the output yet, or whose request has changed; lines that
    failed are left alone without --retry-failed. Files that end in .gz or .zst are compressed.

    \b
    Examples:
      promptmill batch prompts.jsonl --output answers.jsonl --simple --max-tokens 64
      promptmill batch openai-batch.jsonl --output answers.jsonl --errors failed.jsonl
      promptmill batch gsm8k.jsonl.gz --field question --chat --temperature 0 --output answers.jsonl.gz
      cat prompts.jsonl | promptmill batch - --output - --simple | jq -r .text
    """
    _check_files(input_path, output_path, errors_path, as_json, ordered)
    options = BatchOptions(
        input=_path(input_path),
        output=_path(output_path),
        errors=errors_path,
        lines=LineFormat(SamplingParams.of(**given(sampling)), field, chat or system is not None, system),
        simple=simple,
        ordered=ordered,
        retry_failed=retry_failed,
        ignore_model=ignore_model,
        max_in_flight=max_in_flight,
        priority=priority,
        timeout_s=timeout_s,
    )
    with Client(broker_url, model=model) as client, Batch(client, options) as run:
        progress = _run(run, input_path.name)
    _report(run, progress, output_path, errors_path, as_json)
    if progress.errors or run.failed_before:
        sys.exit(1)


def _path(path: Path) -> Path | None:
    return None if str(path) == "-" else path


def _check_files(source: Path, output: Path, errors: Path | None, as_json: bool, ordered: bool) -> None:
    files = {"INPUT": source, "--output": output, **({} if errors is None else {"--errors": errors})}
    known: dict[Path, str] = {}
    for name, path in files.items():
        if str(path) == "-" or (path.exists() and not path.is_file()):
            continue
        if (other := known.setdefault(path.resolve(), name)) != name:
            raise click.UsageError(f"{name} {path} is the same file as {other}: name another one")
    if str(output) == "-":
        for option in ("--json",) * as_json + ("--ordered",) * ordered:
            raise click.UsageError(f"{option} needs a file as --output")


def _run(run: Batch, name: str) -> PromptProgress:
    total = run.count()
    progress = PromptProgress(total)

    def show(answer: Answer) -> None:
        progress.count(answer.result, run.answered_before + run.failed_before)
        if answer.result.error is not None and progress.errors <= SHOWN_ERRORS:
            progress.note(f"{name}:{answer.ticket.number}: {answer.result.error}")
            if progress.errors == SHOWN_ERRORS:
                progress.note("more failed lines are not shown here")

    try:
        with progress:
            run.run(show, total)
            progress.before = run.answered_before + run.failed_before
    except KeyboardInterrupt:
        run.close()  # or what is said next might not be true yet
        done = progress.before + progress.prompts
        of_total = f" of {total:,}" if total is not None else ""
        rest = "; the same command goes on with the rest" if run.can_be_resumed else ""
        progress.note(f"promptmill: interrupted: {done:,}{of_total} lines are done{rest}")
        sys.exit(INTERRUPTED)
    return progress


def _report(run: Batch, progress: PromptProgress, output: Path, errors: Path | None, as_json: bool) -> None:
    answered = progress.prompts - progress.errors
    elapsed_s = progress.elapsed_s
    if as_json:
        summary = {
            "prompts": run.lines,
            "answered": answered,
            "failed": progress.errors,
            "answered_before": run.answered_before,
            "failed_before": run.failed_before,
            "prompt_tokens": progress.prompt_tokens,
            "completion_tokens": progress.completion_tokens,
            "tokens_per_s": round(progress.tokens_per_s, 3),
            "elapsed_s": round(elapsed_s, 3),
            "output": str(output),
            "errors": None if errors is None else str(errors),
        }
        click.echo(json.dumps(summary, indent=2))
        return
    rows = {
        "prompts": f"{run.lines:,}",
        "answered": f"{answered:,}" + (f", and {run.answered_before:,} before" if run.answered_before else ""),
        "failed": f"{progress.errors:,}" + (f", and {run.failed_before:,} before" if run.failed_before else ""),
        "tokens in": f"{progress.prompt_tokens:,}",
        "tokens out": f"{progress.completion_tokens:,}",
        "tokens/s": f"{progress.tokens_per_s:,.0f}",
        "time": duration(elapsed_s),
        "output": "standard output" if str(output) == "-" else str(output),
        **({} if errors is None else {"errors": str(errors)}),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console = Console(stderr=True, soft_wrap=True)
    console.print(table)
    if progress.errors + run.failed_before:
        console.print("Lines that failed are left alone by the next run, unless it has --retry-failed.")
    if run.repeated_ids:
        console.print(
            f"ids that an earlier line has: {run.repeated_ids:,}; promptmill.line tells their answers apart.",
            highlight=False,
        )
