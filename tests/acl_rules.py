"""The access rules that docs/security.md tells people to use."""

from __future__ import annotations

import re
from pathlib import Path

SECURITY = Path(__file__).parent.parent / "docs" / "security.md"


def rules_of(user: str) -> list[str]:
    """The words of one user's rules, without his password."""
    block = re.search(
        rf"^    user {user} on >PASSWORD((?:.*\\\n)*.*)$", SECURITY.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert block is not None, f"no rules of user {user}"
    return block.group(1).replace("\\\n", " ").split()
