"""The ledger: the truth about every accepted prompt. See ``ledger.py`` and the scripts in ``lua/``."""

from promptmill.ledger import calls
from promptmill.ledger.asker import Asker
from promptmill.ledger.call import Call
from promptmill.ledger.calls import MEMORY_PERCENT
from promptmill.ledger.ledger import Ledger
from promptmill.ledger.records import Claim, Entry, Piece, Snapshot

__all__ = [
    "MEMORY_PERCENT",
    "Asker",
    "Call",
    "Claim",
    "Entry",
    "Ledger",
    "Piece",
    "Snapshot",
    "calls",
]
