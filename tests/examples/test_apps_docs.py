"""docs/apps.md shows the examples, the errors and the settings as they are."""

from __future__ import annotations

import re
from pathlib import Path

import promptmill
from promptmill.settings import ClientSettings, environment_name

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "apps.md").read_text(encoding="utf-8")

#: Files of the Django site that only wire it up.
NOT_SHOWN = {"__init__.py", "celery.py", "settings.py", "urls.py", "wsgi.py"}


def shown_examples() -> dict[str, str]:
    """Each example that is shown, by its path."""
    return dict(re.findall(r"^\[(examples/\S+)\]\(\.\./\1\)\n\n```python\n(.*?)```$", DOCS, re.MULTILINE | re.DOTALL))


def test_every_example_is_shown_as_it_is() -> None:
    files = {path for path in (ROOT / "examples").rglob("*.py") if path.name not in NOT_SHOWN}
    code = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert shown_examples() == code


def error_rows() -> list[str]:
    """A row for each error that a client raises."""
    errors = [thing for name in promptmill.__all__ if _is_error(thing := getattr(promptmill, name))]
    errors.sort(key=lambda error: (error is promptmill.PromptmillError, error.http_status, error.__name__))
    return [f"| {error.http_status} | `{error.__name__}` | {_summary(error)} |" for error in errors]


def _is_error(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, promptmill.PromptmillError)


def _summary(thing: type) -> str:
    return (thing.__doc__ or "").partition("\n")[0].rstrip(".")


def setting_rows() -> list[str]:
    """A row for each setting of a client."""
    fields = ClientSettings.model_fields.items()
    return [
        f"| `{environment_name(name)}` | {_default(field.default)} | {field.description} |" for name, field in fields
    ]


def _default(default: object) -> str:
    if default in (None, ""):
        return ""
    return f"{default:,}".removesuffix(".0") if isinstance(default, int | float) else f"`{default}`"


def table(header: str) -> list[str]:
    """The rows of the table with this header."""
    return re.split(r"\n\n|\Z", DOCS.partition(f"{header}\n")[2])[0].splitlines()[1:]


def test_the_table_of_errors_is_the_codes() -> None:
    assert table("| status | error | meaning |") == error_rows()


def test_the_table_of_settings_is_the_codes() -> None:
    assert table("| variable | default | meaning |") == setting_rows()
