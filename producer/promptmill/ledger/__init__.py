"""The ledger: the truth about every accepted prompt. See ``ledger.py`` and the scripts in ``lua/``."""

from promptmill.ledger.ledger import (
    DEFAULT_LIMIT_PROMPTS,
    DEFAULT_MAX_DELIVERIES,
    MEMORY_PERCENT,
    TRANSIENT_ERRORS,
    Claim,
    Entry,
    Ledger,
    Snapshot,
)

__all__ = [
    "DEFAULT_LIMIT_PROMPTS",
    "DEFAULT_MAX_DELIVERIES",
    "MEMORY_PERCENT",
    "TRANSIENT_ERRORS",
    "Claim",
    "Entry",
    "Ledger",
    "Snapshot",
]
