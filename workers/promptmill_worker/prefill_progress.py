"""Progress within a step: a long prompt may take minutes to read, and must not look like a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["watch_layers"]

#: A step that takes longer shows progress so often, if its layers make some, in seconds.
SHOWN_EVERY_S = 10.0


def watch_layers(model: nn.Module, on_progress: Callable[[], None]) -> Callable[[], None]:
    """Has ``on_progress`` called when layers of ``model`` were computed; returns what ends that."""
    shown_at = time.monotonic()

    def after(*_: Any) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now >= shown_at + SHOWN_EVERY_S:
            shown_at = now
            on_progress()

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    handles = [layer.register_forward_hook(after) for stack in stacks for layer in stack]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
