"""The ledger: the truth about every accepted prompt. See ``ledger.py`` and the scripts in ``lua/``."""

from promptmill.ledger.ledger import Claim, Entry, Ledger, Snapshot

__all__ = ["Claim", "Entry", "Ledger", "Snapshot"]
