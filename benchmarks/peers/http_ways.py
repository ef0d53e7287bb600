"""Servers that are asked over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contest import Answer, Job, Setting, Submit
from environments import environment
from processes import peer

__all__ = ["litserve", "transformers_serve", "vllm"]

JSON = {"Content-Type": "application/json"}

REQUIREMENTS = Path(__file__).parent / "requirements"


@contextmanager
def litserve(setting: Setting) -> Iterator[Submit]:
    """LitServe with static batches."""
    port = _free_port()
    python = environment(REQUIREMENTS / "torch-peers.txt")
    with _server([str(python), "litserve_server.py", str(port)], setting, port, "/predict", _litserve_body) as submit:
        yield submit


@contextmanager
def transformers_serve(setting: Setting) -> Iterator[Submit]:
    """``transformers serve --continuous-batching``, with steps as large as ours and room for 512 tokens a request.

    It has no option for how many requests it computes at once, and its attention grows with their square: so no more
    are asked at once than the others compute.
    """
    port = _free_port()
    transformers = environment(REQUIREMENTS / "torch-peers.txt").with_name("transformers")
    command = [str(transformers), "serve", str(setting.model), "--continuous-batching", "--dtype", setting.dtype]
    command += ["--device", "cpu", "--attn-implementation", "sdpa", "--cb-block-size", "16"]
    command += ["--cb-num-blocks", str(setting.slots * 512 // 16), "--cb-max-batch-tokens", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with _server(
        command, setting, port, "/v1/chat/completions", _openai_body(setting), connections=setting.slots
    ) as submit:
        yield submit


@contextmanager
def vllm(setting: Setting) -> Iterator[Submit]:
    """The build of vLLM for CPUs."""
    port = _free_port()
    python = environment(REQUIREMENTS / "vllm.txt")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(setting.model)]
    command += ["--dtype", setting.dtype, "--max-num-seqs", str(setting.slots), "--max-model-len", "2048"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{setting.threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    body = _openai_body(setting, ignore_eos=True)  # it looks for the tokenizer's, too
    with _server(command, setting, port, "/v1/chat/completions", body, variables=variables) as submit:
        yield submit


def _litserve_body(job: Job) -> dict[str, Any]:
    return {"messages": job.messages, "max_tokens": job.max_tokens}


def _openai_body(setting: Setting, **options: Any) -> Callable[[Job], dict[str, Any]]:
    common = {"model": str(setting.model), "temperature": 0.0, **options}
    return lambda job: {**common, "messages": job.messages, "max_tokens": job.max_tokens}


@contextmanager
def _server(
    command: Sequence[str],
    setting: Setting,
    port: int,
    path: str,
    body: Callable[[Job], dict[str, Any]],
    *,
    connections: int = 256,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Submit]:
    address = f"http://127.0.0.1:{port}"

    def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
        return [asking.submit(ask, job) for job in jobs]

    def ask(job: Job) -> Answer:
        request = urllib.request.Request(f"{address}{path}", json.dumps(body(job)).encode(), JSON)
        with urllib.request.urlopen(request, timeout=600) as response:
            return _answer_of(json.load(response))

    def is_ready() -> bool:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    with peer(command, setting, is_ready, **variables or {}), ThreadPoolExecutor(connections) as asking:
        yield submit


def _answer_of(body: dict[str, Any]) -> Answer:
    if "text" in body:  # LitServe's
        return Answer(body["text"], body["tokens"])
    return Answer(body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"])


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
