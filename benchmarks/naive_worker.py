"""What people write today: a Celery task that calls ``generate()`` for one prompt, in a worker of one process.

Started by ``main_job.py``: ``celery -A naive_worker worker --pool solo``.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from celery import Celery
from transformers import AutoModelForCausalLM, AutoTokenizer

app = Celery("naive", broker=os.environ["NAIVE_BROKER"], backend=os.environ["NAIVE_BROKER"])
app.conf.update(task_default_queue="naive", worker_prefetch_multiplier=1)

torch.set_num_threads(int(os.environ["NAIVE_THREADS"]))
_folder = os.environ["NAIVE_MODEL"]
_tokenizer = AutoTokenizer.from_pretrained(_folder)
_model = AutoModelForCausalLM.from_pretrained(_folder, dtype=os.environ["NAIVE_DTYPE"]).eval()


@app.task(name="naive.generate")  # type: ignore[untyped-decorator]
def generate(messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
    """Text and token count for one chat."""
    inputs = _tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = _model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    new = output[0][inputs["input_ids"].shape[1] :]
    return {"text": _tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}
