"""The command line: ``promptmill``."""

from promptmill.cli.main import main

__all__ = ["main"]
