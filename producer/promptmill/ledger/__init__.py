"""The ledger: the truth about every accepted prompt. See ``ledger.py`` and the scripts in ``lua/``."""

from promptmill.ledger.ledger import TRANSIENT_ERRORS, Claim, Entry, Ledger, Snapshot

__all__ = ["TRANSIENT_ERRORS", "Claim", "Entry", "Ledger", "Snapshot"]
