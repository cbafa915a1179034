"""Commands of this repository, as benchmarks run them."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.records import ROOT


def is_evaluated(folder: Path) -> bool:
    """Tells whether a folder has the results of a finished run; those that cannot be read do not count."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results["epoch"] == results["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run_logged(line: list[str], log: Path, device: str, errors: int | None = subprocess.STDOUT) -> int:
    """Runs ``python LINE`` in this repository, its output appended to ``log``, and returns its exit status.

    On a CPU it has one thread: the number of threads changes the order of summation.

    Args:
        errors: where its standard error goes, see :mod:`subprocess`; by default to ``log``.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})
    with open(log, "a") as output:
        output.write(f"$ {shlex.join(['python', *line])}\n")
        output.flush()
        command = [sys.executable, *line]
        return subprocess.run(command, cwd=ROOT, stdout=output, stderr=errors, env=environment).returncode


def require_valid(line: list[str]) -> None:
    """Parses a script's command line, which ends the process with the parser's message if it is wrong."""
    spec = importlib.util.spec_from_file_location(f"{line[0]} as a module", ROOT / line[0])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.parse_args(line[1:])
