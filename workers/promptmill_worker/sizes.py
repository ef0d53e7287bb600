"""Sizes for a reader."""

from __future__ import annotations

__all__ = ["shown"]


def shown(number_bytes: float) -> str:
    """``number_bytes`` as one reads it: "1.5 GiB", "513 MiB", "12 KiB"."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number_bytes >= size:
            value = number_bytes / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{number_bytes:.0f} B"
