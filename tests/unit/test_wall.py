from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, sys
import promptmill

HEAVY = {"torch", "transformers", "accelerate", "bitsandbytes", "promptmill_worker"}

names = [module.name for module in pkgutil.walk_packages(promptmill.__path__, "promptmill.")]
for name in ["promptmill", *(name for name in names if not name.endswith("__main__"))]:
    importlib.import_module(name)
    loaded = HEAVY & sys.modules.keys()
    if loaded:
        sys.exit(f"importing {name} loads {', '.join(sorted(loaded))}")
print(len(names))
"""


def test_importing_promptmill_and_any_of_its_modules_loads_nothing_of_the_worker() -> None:
    fresh = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr
    assert int(fresh.stdout) > 5
