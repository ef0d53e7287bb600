"""Environments of their own for what we compare ourselves with: nothing of it enters ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["environment"]

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-bench"


def environment(requirements: Path) -> Path:
    """The Python of an environment with ``requirements``, made now unless a run before did it.

    Args:
        requirements: A requirements file with pinned versions; its name is the environment's.

    Raises:
        subprocess.CalledProcessError: pip could not install them.
    """
    folder = ENVIRONMENTS / requirements.stem
    python = folder / "bin" / "python"
    made_of = folder / "made-of"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not made_of.exists() or made_of.read_text(encoding="utf-8") != digest:
        print(f"installing {requirements.stem}: some minutes the first time", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        made_of.write_text(digest, encoding="utf-8")
    return python
