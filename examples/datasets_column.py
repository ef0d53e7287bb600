"""Hugging Face datasets: rows with a question in, the same rows with an answer out, of any number.

pip install promptmill datasets; python datasets_column.py questions.jsonl answers/
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

from datasets import Dataset, Features, Value, load_dataset

from promptmill import Client

Row = dict[str, Any]


def answered(rows: Iterable[Row], **options: Any) -> Iterator[Row]:
    """The rows with ``answer`` and ``error``. No more of them are in memory than are in flight."""
    rows, asked = tee(rows)
    chats = ([{"role": "user", "content": row["question"]}] for row in asked)
    with Client() as client:
        results = client.map(chats, on_error="yield", **options)
        for row, result in zip(rows, results, strict=True):
            yield {**row, "answer": result.text, "error": str(result.error or "")}


def with_answers(dataset: Dataset, **options: Any) -> Dataset:
    """The dataset with two more columns; written to the cache row by row.

    The same call finds it there again, so name in it what the answers hang on: the model, too.
    """
    features = Features({**dataset.features, "answer": Value("string"), "error": Value("string")})
    return Dataset.from_generator(answered, features=features, gen_kwargs={"rows": dataset, **options})


if __name__ == "__main__":
    source, target = sys.argv[1:]
    questions = load_dataset("json", data_files=source, split="train")
    with_answers(questions, model="smollm2", max_tokens=64, temperature=0).save_to_disk(target)
