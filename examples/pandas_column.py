"""pandas: a column of questions in, a column of answers out.

pip install promptmill pandas; python pandas_column.py questions.csv answers.csv
"""

import sys
from typing import Any

import pandas as pd

from promptmill import Client


def with_answers(frame: pd.DataFrame, client: Client, **options: Any) -> pd.DataFrame:
    """The frame with two more columns: ``answer``, and ``error`` for rows that have none. The index stays."""
    chats = ([{"role": "user", "content": question}] for question in frame["question"])
    results = list(client.map(chats, on_error="yield", **options))
    return frame.assign(
        answer=[None if result.error else result.text for result in results],
        error=[str(result.error) if result.error else None for result in results],
    )


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with Client() as promptmill:
        with_answers(pd.read_csv(source), promptmill, max_tokens=64, temperature=0).to_csv(target, index=False)
