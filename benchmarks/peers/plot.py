"""A bar for each way, as an SVG that a page shows: tokens a second, with the least and the most.

python benchmarks/peers/plot.py benchmarks/results/peers-mixed.json docs/images/peers-mixed.svg
"""

from __future__ import annotations

import json
import statistics
import sys
from html import escape
from pathlib import Path
from typing import Any

from report import OURS

__all__ = ["bars"]

#: Of the picture, in pixels: the names' column, the longest bar, the figures' column, a row.
NAMES, LONGEST, FIGURES, ROW = 150, 420, 70, 26

STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.ours { fill: #2f6feb } .theirs { fill: #9aa4af } line { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } line { stroke: #c9d1d9 } .theirs { fill: #57606a } }
</style>"""


def bars(figures: dict[str, Any]) -> str:
    """The picture of what ``report`` found."""
    speeds: dict[str, list[float]] = {name: of_way["tokens_per_s"] for name, of_way in figures["ways"].items()}
    scale = LONGEST / max(max(of_way) for of_way in speeds.values())
    by_speed = sorted(speeds, key=lambda name: -statistics.median(speeds[name]))
    rows = [_row(number, name, speeds[name], scale) for number, name in enumerate(by_speed)]
    width, height = NAMES + LONGEST + FIGURES, ROW * len(rows)
    title = f"<title>Tokens a second, {escape(figures['workload'])}</title>"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
    return "\n".join([opening, title, STYLE, *rows, "</svg>", ""])


def _row(number: int, name: str, speeds: list[float], scale: float) -> str:
    middle = number * ROW + ROW / 2
    length, least, most = (round(of * scale, 1) for of in (statistics.median(speeds), min(speeds), max(speeds)))
    kind = "ours" if name in OURS else "theirs"
    return (
        f'<text x="{NAMES - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{NAMES}" y="{middle - 8}" width="{length}" height="16"/>'
        f'<line x1="{NAMES + least}" x2="{NAMES + most}" y1="{middle}" y2="{middle}"/>'
        f'<text x="{NAMES + max(length, most) + 8}" y="{middle + 4}">{statistics.median(speeds):.0f}</text>'
    )


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(bars(found), encoding="utf-8")
