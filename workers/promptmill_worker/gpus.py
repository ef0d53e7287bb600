"""The GPUs of this machine, and which of them ``--gpus`` asks for.

They are read from ``nvidia-smi -L``, which comes with the driver and, by default, into containers. Asking torch would
take seconds, and hold memory in a process that does nothing else; and it does not list the parts of a GPU (MIG).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from promptmill.errors import InvalidSettingError

__all__ = ["VISIBLE", "Gpu", "pick_gpus"]

#: The environment variable that tells CUDA which devices there are.
VISIBLE = "CUDA_VISIBLE_DEVICES"

#: How long the driver may take to list its devices, in seconds: it wakes GPUs that sleep.
LIST_TIMEOUT_S = 60.0

_LINE = re.compile(r"^(?:GPU|\s+MIG\b.*\bDevice)\s+(\d+):.*\(UUID: ([^)\s]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one."""

    #: As ``--gpus`` and our names have it: nvidia-smi's number, "0"; with its number in it for a part, "0:1".
    number: str
    #: Position among all there are.
    position: int
    #: What CUDA calls it, in whatever order it counts: "GPU-…", "MIG-…", or as ``CUDA_VISIBLE_DEVICES`` has it.
    device: str


def pick_gpus(asked: str, environ: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that ``asked`` names, in its order.

    Args:
        asked: "all", or numbers with commas between them: "0,1"; for parts of GPUs "0:0,0:1".
        environ: A ``CUDA_VISIBLE_DEVICES`` in it bounds what there is.

    Raises:
        InvalidSettingError: there is no GPU, not this one, or ``asked`` means nothing.
    """
    if not re.fullmatch(r"all|\d+(:\d+)?(,\d+(:\d+)?)*", asked):
        raise InvalidSettingError(f"gpus: {asked!r} is not allowed: it is all, or numbers like 0,1")
    there = {gpu.number: gpu for gpu in _visible(_all_gpus(), environ.get(VISIBLE))}
    within = f" within {VISIBLE}={environ[VISIBLE]}" if VISIBLE in environ else ""
    if not there:
        raise InvalidSettingError(f"gpus: there is no GPU here{within}: leave --gpus out, and the CPU is used")
    if asked == "all":
        return list(there.values())
    numbers = asked.split(",")
    for number in numbers:
        if number not in there:
            found = f"{'these are' if len(there) > 1 else 'this is'}: {', '.join(there)}"
            raise InvalidSettingError(f"gpus: GPU {number} is not there{within}; {found}")
        if numbers.count(number) > 1:
            raise InvalidSettingError(f"gpus: {asked} names GPU {number} twice: one worker has it to itself")
    return [there[number] for number in numbers]


def _all_gpus() -> list[Gpu]:
    """The parts of those GPUs that are divided, and the others as they are."""
    found: list[tuple[str, str]] = []
    whole = ""
    for match in _LINE.finditer(_listed()):
        number, device = match.groups()
        if match[0].startswith("GPU"):
            whole = number
            found.append((whole, device))
        else:
            found = [item for item in found if item[0] != whole]  # it can't be used as a whole
            found.append((f"{whole}:{number}", device))
    return [Gpu(number, position, device) for position, (number, device) in enumerate(found)]


def _listed() -> str:
    """What ``nvidia-smi -L`` says; "" where there is none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LIST_TIMEOUT_S)
    except (FileNotFoundError, PermissionError):
        return ""
    except subprocess.TimeoutExpired:
        raise InvalidSettingError(
            f"gpus: nvidia-smi has not answered in {LIST_TIMEOUT_S:.0f} s: look after the driver"
        ) from None
    if listed.returncode != 0:
        said = " ".join((listed.stdout + listed.stderr).split())
        raise InvalidSettingError(f"gpus: nvidia-smi fails with exit code {listed.returncode}: {said[:300]}")
    return listed.stdout


def _visible(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that CUDA would see, in its order: what follows a name that means nothing is hidden."""
    if visible is None:
        return gpus
    seen: dict[str, Gpu] = {}
    for name in visible.split(","):
        named = _named(gpus, name.strip())
        if not named:
            break
        seen.update((gpu.number, gpu) for gpu in named)
    return list(seen.values())


def _named(gpus: list[Gpu], name: str) -> list[Gpu]:
    """By number (that of a divided GPU names all its parts), or by the beginning of what CUDA calls it."""
    # Handed on by this number, as CUDA may count in another order than nvidia-smi.
    whole = [replace(gpu, device=name) for gpu in gpus if gpu.number == name]
    parts = [gpu for gpu in gpus if name.isdecimal() and gpu.number.startswith(f"{name}:")]
    by_id = [gpu for gpu in gpus if name.startswith(("GPU-", "MIG-")) and gpu.device.startswith(name)]
    return whole or parts or by_id
