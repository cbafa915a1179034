"""Runs as benchmarks see them: commands in this repository, and what they leave in a run directory."""

import contextlib
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from utils.checkpoint import DATA_FLAGS
from utils.errors import InputError, first_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runs"  # those that the documents show

# Where things are on this machine; not part of a result.
LOCAL_FLAGS = DATA_FLAGS | {"data_root_path", "srp", "save_root_path", "resume", "gpu", "figures"}


def is_evaluated(folder: Path) -> bool:
    """Tells whether a folder has the results of a finished run; those that cannot be read do not count."""
    try:
        results = json.loads((folder / "results.json").read_text())
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
    """Parses a script's command line.

    Raises:
        InputError: the script refuses it.
    """
    spec = importlib.util.spec_from_file_location(f"{line[0]} as a module", ROOT / line[0])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            script.parse_args(line[1:])
    except SystemExit:
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise InputError(f"{line[0]} refuses its command line: {reason}") from None


def read_run(folder: Path, evaluation: Path | None = None) -> dict:
    """Returns what tables need of a run directory: name, seed, date, training seconds, arguments, results.

    Args:
        evaluation: the folder of results.json, if it is another one.

    Raises:
        InputError: it is not an evaluated run.
    """
    evaluation = evaluation or folder
    if not (evaluation / "results.json").exists():
        raise InputError(
            f"{evaluation} has no results.json; evaluate the run first: test.py --ckpt_path {folder}"
        )
    try:
        settings = json.loads((folder / "args.json").read_text())
        history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        results = json.loads((evaluation / "results.json").read_text())
        return {
            "name": str(folder),
            "seed": settings["seed"],
            "date": results["environment"]["date"],
            "train_seconds": round(sum(record["seconds"] for record in history), 1),
            "args": {name: value for name, value in settings.items() if name not in LOCAL_FLAGS},
            "results": {name: value for name, value in results.items() if name != "checkpoint"},
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be read as a run directory: {first_line(error)}") from None
