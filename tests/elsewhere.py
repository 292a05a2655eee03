"""A process as a stranger's: started in a folder of its own, isolated, and without this project on its import path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BEFORE = """
import importlib.util, json, sys
# `make install` installs the project editable, by a finder on the import path; this process must do without it
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
names = ("configuration_multitask", "modeling_multitask", "pipeline_multitask", "handler", "train_hf")
found = {"importable": [name for name in names if importlib.util.find_spec(name)]}
"""
AFTER = """
with open("found.json", "w") as file:
    json.dump(found, file)
"""


def run_elsewhere(script: str, out: Path, *arguments: str, seconds: int = 300) -> dict[str, Any]:
    """Run a script with `arguments` as its `sys.argv[1:]` in the empty folder `out`; every warning is an error.

    Returns:
        The dict `found`, to which the script adds what it finds; `importable` are modules of ours that it could import
        (none: else it proves nothing).
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(out / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-W", "error", "-c", BEFORE + script + AFTER, *arguments]
    done = subprocess.run(
        command, cwd=out, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    found = json.loads((out / "found.json").read_text())
    assert found["importable"] == [], "premise: only the folder's own copies can have answered"
    return found
