"""The ``promptmill`` script. It is outside the package, whose import takes half a second: Ctrl-C must end that, too."""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

#: The exit code of what was interrupted, as in ``promptmill.cli.interrupts``.
INTERRUPTED = 130


def main() -> None:
    """Imports the command line and runs it; Ctrl-C before it begins ends the process without a word."""
    # Not by KeyboardInterrupt: some of the modules that are imported would report it, or go on.
    handler = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from promptmill.cli import main as run

    signal.signal(signal.SIGINT, handler)
    run()
