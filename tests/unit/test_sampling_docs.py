"""docs/sampling.md names every parameter, with its default."""

from __future__ import annotations

import re
from pathlib import Path

from promptmill.sampling_params import SamplingParams

TABLE = Path(__file__).parents[2] / "docs" / "sampling.md"


def shown(default: object) -> str:
    """A default as the table writes it."""
    return "none" if default in (None, (), {}) else str(default).lower()


def test_the_table_of_parameters_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = SamplingParams().model_dump()
    assert dict(rows) == {name: shown(default) for name, default in defaults.items()}
    assert [name for name, _ in rows] == list(defaults)
