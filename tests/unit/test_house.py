"""The files around the code say what they should."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from promptmill import names

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def direct_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def test_every_direct_dependency_is_pinned_to_a_version_that_the_package_allows() -> None:
    for requirement in direct_dependencies():
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_the_license_is_the_whole_apache_license() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_every_key_is_in_the_docs_as_it_is_in_names() -> None:
    docs = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("## Every key")[2]
    assert first_column(docs.replace("\\|", "|")) == first_column((names.__doc__ or "").replace("``", "`"))


def first_column(text: str) -> set[str]:
    """What is between backquotes in the first column of a table."""
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall("`([^`]+)`", cell)}
