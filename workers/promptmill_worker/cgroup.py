"""What a container, a systemd slice or a batch system leaves this process: CPU time and memory, cgroups v1 and v2.

A limit of any group above ours counts, too. Where there are no cgroups (macOS), there are no limits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota", "memory_left_bytes"]

#: Where the kernel shows the groups.
GROUPS = Path("/sys/fs/cgroup")
#: Which of them this process is in, one line a hierarchy: ``number:controllers:path``.
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """How many cores' time this process may use; None without a limit."""
    quotas = []
    for group in _groups("cpu", groups, membership):
        quota, period = (_words(group / "cpu.max") or ["max", "1"])[:2]
        if quota == "max":
            quota, period = _word(group / "cpu.cfs_quota_us", "-1"), _word(group / "cpu.cfs_period_us", "100000")
        if float(quota) > 0:
            quotas.append(float(quota) / float(period))
    return min(quotas, default=None)


def memory_left_bytes(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """How much more memory this process may use, in bytes; None without a limit.

    Files in the page cache don't count as used: the kernel gives them up.
    """
    left = []
    for group in _groups("memory", groups, membership):
        limit = _word(group / "memory.max", "") or _word(group / "memory.limit_in_bytes", "max")
        if limit == "max":
            continue
        used = int(_word(group / "memory.current", "") or _word(group / "memory.usage_in_bytes", "0"))
        left.append(max(0, int(limit) - used + _reclaimable_bytes(group)))
    return min(left, default=None)


def _groups(controller: str, groups: Path, membership: Path) -> Iterator[Path]:
    """Our group and those above it: of cgroups v2, and of the controller's own hierarchy in v1."""
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        # Inside a container the path may be the host's, which does not exist here: then only the root is read.
        inside = Path(path.lstrip("/"))
        if not controllers:
            roots = [groups, groups / "unified"]
        elif controller in controllers.split(","):
            roots = [groups / controllers, groups / controller]
        else:
            continue
        for root in roots:
            for group in {root / inside, *((root / inside).parents)}:
                if group.is_relative_to(root) and group.is_dir():
                    yield group


def _reclaimable_bytes(group: Path) -> int:
    counted = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
    return int(counted.get("total_inactive_file") or counted.get("inactive_file") or 0)


def _lines(file: Path) -> list[str]:
    with contextlib.suppress(OSError):  # not there, or not ours to read
        return file.read_text(encoding="utf-8").splitlines()
    return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _word(file: Path, default: str) -> str:
    return next(iter(_words(file)), default)
