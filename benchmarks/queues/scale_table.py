"""Figures and tables of ``scale.py``.

python benchmarks/queues/scale_table.py benchmarks/results/scale.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["Costs", "markdown"]

PARTS = ("broker", "client", "workers")


class Costs:
    """What a prompt and an idle worker cost each part, taken from the run with the most workers.

    Args:
        found: What ``scale.py`` has measured.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        row = found["rows"][-1]
        self._speed = row["prompts"] / row["took_s"]
        self._busy, self._idle, self._workers = row["busy"], row["idle"], row["workers"]

    def of_prompt(self, what: str) -> float:
        """CPU seconds of a part, or bytes, beyond what idle workers use."""
        return float((self._busy[what] - self._idle[what]) / self._speed)

    def of_idle_worker(self, what: str) -> float:
        """Share of a core, or bytes a second."""
        return float(self._idle[what] / self._workers)

    def most_workers(self, prompts_per_s: float, cores: float = 1.0) -> float:
        """How many workers, each with so many prompts a second, keep a broker busy for ``cores`` of a core."""
        return cores / (prompts_per_s * self.of_prompt("broker") + self.of_idle_worker("broker"))


def markdown(found: dict[str, Any]) -> str:
    """The runs; below, what they say of a broker that has a core of its own."""
    columns = [
        "workers",
        "prompts/s",
        "÷ (workers · one)",
        *(f"{part}, cores" for part in PARTS),
        "idle workers, cores",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = found["rows"][0]
    one = first["prompts"] / first["took_s"] / first["workers"]
    for row in found["rows"]:
        speed = row["prompts"] / row["took_s"]
        cells = [str(row["workers"]), f"{speed:,.0f}", f"{speed / one / row['workers']:.2f}"]
        cells += [f"{row['busy'][part]:.2f}" for part in PARTS]
        lines.append(f"| {' | '.join(cells)} | {row['idle']['workers']:.2f} |")
    costs = Costs(found)
    lines += ["", "| what | broker | client | workers | bytes through the broker |", "|---|---|---|---|---|"]
    prompt = [f"{1e6 * costs.of_prompt(part):,.0f} µs" for part in PARTS]
    lines.append(f"| a prompt | {' | '.join(prompt)} | {costs.of_prompt('bytes'):,.0f} |")
    idle = [f"{100 * costs.of_idle_worker(part):.2f} % of a core" if part != "client" else "" for part in PARTS]
    lines.append(f"| an idle worker | {' | '.join(idle)} | {costs.of_idle_worker('bytes'):,.0f} a second |")
    pace = found["prompts_per_s_of_one"]
    lines.append("")
    for cores in (0.7, 1.0):
        workers = costs.most_workers(pace, cores)
        carried = f"{workers:,.0f} such workers, {workers * pace:,.0f} prompts/s"
        lines.append(f"- a broker that is busy for {cores:.0%} of a core: {carried}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
