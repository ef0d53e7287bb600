"""The ledger: the truth about every accepted prompt. See ``ledger.py`` and the scripts in ``lua/``."""

from promptmill.ledger.ledger import MEMORY_PERCENT, Ledger
from promptmill.ledger.patience import TRANSIENT_ERRORS
from promptmill.ledger.records import Claim, Entry, Piece, Snapshot

__all__ = [
    "MEMORY_PERCENT",
    "TRANSIENT_ERRORS",
    "Claim",
    "Entry",
    "Ledger",
    "Piece",
    "Snapshot",
]
