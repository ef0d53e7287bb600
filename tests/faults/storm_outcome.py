"""What a storm has left, as one table that can be checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from storm_account import FATES, Account
from storm_recovery import Recoveries

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """All that a storm is judged by; as a string, the tables of it."""

    seed: str
    accounts: list[Account]
    recoveries: Recoveries
    #: How often each fault came.
    faults: Counter[str]
    #: Dead letters, and those among them whose prompt was innocent.
    letters: int
    innocent_letters: int
    #: Tasks of poison prompts without a dead letter.
    missing_letters: set[str]
    #: Keys that should be gone.
    keys_left: list[str]
    #: Messages by list.
    messages_left: dict[str, int]
    #: Exit codes of submitters that nobody killed.
    failures: list[int]
    #: How often workers were started.
    starts: int
    storm_s: float
    #: From the storm's end until all was answered.
    quiet_s: float

    def sum(self, fate: str) -> int:
        """How many prompts had a fate."""
        return sum(account.fates[fate] for account in self.accounts)

    def __str__(self) -> str:
        total = Account("all", sum(account.submitted for account in self.accounts))
        for account in self.accounts:
            total.fates += account.fates
        rest = [
            ["plain calls that no worker had taken yet", str(self.sum("never taken"))],
            ["dead letters", str(self.letters)],
            ["dead letters of innocent prompts", str(self.innocent_letters)],
            ["keys left", " ".join(self.keys_left) or "0"],
            ["messages left", str(self.messages_left) if self.messages_left else "0"],
            ["submitters that failed", str(len(self.failures))],
            ["workers started", str(self.starts)],
            ["the storm, s", f"{self.storm_s:.0f}"],
            ["quiet until all was answered, s", f"{self.quiet_s:.0f}"],
        ]
        tables = [
            table([["prompts", "submitted", *FATES], *(account.row() for account in [*self.accounts, total])]),
            table([["fault", "times"], *([name, str(times)] for name, times in sorted(self.faults.items()))]),
            table(self.recoveries.rows()),
            table(rest),
        ]
        strange = [line for account in self.accounts for line in account.strange[:20]]
        return "\n\n".join([f"seed {self.seed}", *tables, *strange])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
