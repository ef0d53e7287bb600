"""Files of prompts and answers, as tests write and read them."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

from backports import zstd

#: How the standard tools open a compressed file.
OPENED: dict[str, Any] = {".gz": gzip.open, ".zst": zstd.open}


def written(path: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    raw = [line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
           for line in lines]  # fmt: skip
    with OPENED.get(path.suffix, open)(path, "wb") as file:
        file.write(b"\n".join(raw))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    with OPENED.get(path.suffix, open)(path, "rb") as file:
        return [json.loads(line) for line in file.read().splitlines()]


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """What a file has that may end in the midst of a line, plain or in gzip's format."""
    shown = subprocess.run(["gzip", "--decompress", "--force", "--stdout", path], stdout=subprocess.PIPE).stdout
    return [json.loads(line) for line in shown.splitlines(keepends=True) if line.endswith(b"\n")]


def numbers(lines: list[dict[str, Any]]) -> list[int]:
    return [line["promptmill"]["line"] for line in lines]


def prompts(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"line {number}", **fields} for number in range(1, count + 1)]
