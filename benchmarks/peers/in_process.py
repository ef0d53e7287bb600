"""transformers itself, without a queue: its continuous batching as it comes, and static batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from contest import Answer, Job, Setting, Submit
from static_generation import StaticModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from promptmill_worker.attention import attend_by_request

__all__ = ["static", "stock"]


@contextmanager
def stock(setting: Setting) -> Iterator[Submit]:
    """The continuous batching of transformers with its own attention, and the settings that are best for ours, too."""
    tokenizer, model = _loaded(setting)
    config = ContinuousBatchingConfig(
        max_requests_per_batch=setting.slots,
        page_size=16,
        num_blocks=setting.slots * 512 // 16,
        max_batch_tokens=512,
        auto_switch_to_flash=False,
    )
    manager = model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)
    pending: dict[str, Future[Answer]] = {}

    def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention_forward
        futures = []
        for job in jobs:
            future: Future[Answer] = Future()
            name = str(id(future))
            pending[name] = future
            manager.add_request(_ids(tokenizer, job), request_id=name, max_new_tokens=job.max_tokens)
            futures.append(future)
        return futures

    def deliver() -> None:
        while not ended.is_set():
            output = manager.get_result(timeout=0.1)
            if output is not None:
                text = tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
                pending.pop(output.request_id).set_result(Answer(text, len(output.generated_tokens)))
            if not pending:
                ALL_ATTENTION_FUNCTIONS["sdpa"] = attend_by_request

    ended = threading.Event()
    delivery = threading.Thread(target=deliver)
    with torch.inference_mode():
        manager.start()
    delivery.start()
    try:
        yield submit
    finally:
        ended.set()
        delivery.join()
        manager.stop(hard_stop=True)


@contextmanager
def static(setting: Setting) -> Iterator[Submit]:
    """``generate()`` for batches of all that is there, sorted by length, so that little is computed in vain."""
    model = StaticModel(str(setting.model), setting.dtype, setting.threads)

    def submit(jobs: Sequence[Job]) -> list[Future[Answer]]:
        futures: list[Future[Answer]] = [Future() for _ in jobs]
        by_length = sorted(zip(jobs, futures, strict=True), key=lambda both: both[0].max_tokens)
        threading.Thread(target=generate, args=(by_length,)).start()
        return futures

    def generate(work: list[tuple[Job, Future[Answer]]]) -> None:
        for begin in range(0, len(work), setting.slots):
            batch = work[begin : begin + setting.slots]
            answers = model.answer([(job.messages, job.max_tokens) for job, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(Answer(*answer))

    yield submit


def _loaded(setting: Setting) -> tuple[Any, Any]:
    torch.set_num_threads(setting.threads)
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=setting.dtype, attn_implementation="sdpa")
    return AutoTokenizer.from_pretrained(setting.model), model.eval()


def _ids(tokenizer: Any, job: Job) -> list[int]:
    ids = tokenizer.apply_chat_template(job.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)
