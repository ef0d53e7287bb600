"""docs/models.md says what the code does, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from promptmill.settings import Settings
from promptmill_worker import load_errors
from promptmill_worker.settings import EngineSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """What is below a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {number for number, line in enumerate(lines) if line.startswith("|---")}
    body = [line for number, line in enumerate(lines) if number not in heads and number + 1 not in heads]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body]


def quoted(cells: list[str]) -> set[str]:
    """What is between backquotes."""
    return {word for cell in cells for word in re.findall("`([^`]+)`", cell)}


def names_of_tests() -> set[str]:
    """The names of all tests."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}


def setting_rows() -> list[str]:
    """The table of settings, as it should be."""
    fields: dict[str, Any] = {
        name: field
        for name, field in [
            *EngineSettings.model_fields.items(),
            ("measure_s", WorkerSettings.model_fields["measure_s"]),
        ]
        if name not in Settings.model_fields
    }
    return [
        f"| `{name}` | {shown(None if field.is_required() else field.default)} | {field.description} |"
        for name, field in fields.items()
    ]


def shown(default: Any) -> str:
    """A default value, for a reader."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default is None else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_of_the_engine_is_in_its_table_with_its_default() -> None:
    table = [line for line in section("Settings").splitlines() if line.startswith("| `")]
    assert table == setting_rows()


@pytest.mark.parametrize(("title", "field"), [("Precision", "dtype"), ("Precision", "quantization")])
def test_every_precision_is_in_its_table(title: str, field: str) -> None:
    annotation = EngineSettings.model_fields[field].annotation
    literals = {
        value for part in (annotation, *get_args(annotation)) for value in get_args(part) if isinstance(value, str)
    }
    assert literals <= quoted([row[0] for row in rows(section(title))])


def test_every_device_is_in_its_table() -> None:
    devices = quoted([row[0] for row in rows(section("Devices"))])
    assert devices == {"auto", "balanced", "cpu", "cuda", "cuda:1", "mps"}
    for device in devices:
        EngineSettings.read(model="demo", device=device)


def test_every_sentence_is_in_its_table() -> None:
    sentences = {value for name, value in vars(load_errors).items() if name.isupper() and isinstance(value, str)}
    assert len(sentences) > 10
    assert sentences <= quoted([row[0] for row in rows(section("When a model can't be loaded"))])


def test_every_table_that_names_tests_names_one_in_each_row() -> None:
    for title in (
        "Where models come from",
        "Devices",
        "Precision",
        "When a model can't be loaded",
        "From a transformers script",
    ):
        for row in rows(section(title)):
            assert re.search(r"`test_\w+`", row[-1]), row


def test_every_pattern_and_every_trouble_of_the_tutorial_has_its_answer() -> None:
    first = [row[0] for row in rows(section("From a transformers script"))]
    for wanted in ("Pattern 1", "Pattern 2", "Pattern 3", "Pattern 4", "Pattern 5"):
        assert any(cell.startswith(wanted) for cell in first), wanted
    for wanted in ("Issue 1", "Issue 2", "Issue 3", "Issue 4", "Issue 5"):
        assert any(cell.startswith(wanted) for cell in first), wanted


def test_every_test_that_the_docs_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCS))
    assert len(named) > 20
    assert named <= names_of_tests()
