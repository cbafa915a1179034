"""A run's directory: its owner, its arguments, its log."""

import contextlib
import csv
import datetime
import io
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision

from utils.errors import InputError, first_line
from utils.losses import TERMS

try:
    import fcntl
except ImportError:
    print("error: Windows is not supported; use Linux or WSL (Windows Subsystem for Linux)", file=sys.stderr)
    sys.exit(2)

LOCK = "run.lock"


def environment(device):
    """Returns versions, device, commit and date, for ``args.json`` and result files."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor_name():
    """Returns the CPU's name if the system reveals it, else its architecture."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else f"{platform.machine()} CPU"


def _commit():
    """Returns the commit of this code, with "-dirty" if files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


_locks = set()  # descriptors of the locks held by this process


def _leave_locks_to_the_parent():
    """Closes the run's locks in a forked reader, which may outlive a killed run by seconds."""
    for lock in _locks:
        os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class RunDirectory:
    """A folder that only one process at a time writes; a second one is refused.

    The kernel releases the lock of a dead process. Without file locks, as on some network file systems, the
    run continues unlocked, with a warning.

    Raises:
        InputError: the folder cannot be written, or another run is using it.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"the output folder {self.folder} cannot be written: {error.strerror or error}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on SMB shares
            owner = os.read(self._lock, 99).decode(errors="replace").strip()
            self.close()
            raise InputError(f"another run (process {owner}) is using {self.folder}") from None
        except OSError as error:
            reason = error.strerror or error
            say(f"warning: {self.folder} cannot be locked ({reason}); start no second run there", sys.stderr)
        _locks.add(self._lock)
        with contextlib.suppress(OSError):  # on a full disk the lock holds without the owner's name
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"{os.getpid()} on {platform.node()}\n".encode())

    def close(self):
        """Releases the folder for other runs."""
        _locks.discard(self._lock)
        os.close(self._lock)

    def write_json(self, name, value):
        write_text(self.folder / name, json.dumps(value, indent=2, default=str) + "\n")

    def write_log(self, history: list[dict]) -> None:
        """Writes ``log.jsonl``, one JSON object per epoch, and ``log.csv``, whole: no gaps after resuming."""
        write_text(self.folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        write_text(self.folder / "log.csv", csv_text(history))


def describe(record: dict, epochs: int) -> str:
    """Describes an epoch in one line."""
    kind = "val" if "val_accuracy" in record else "train"
    shots = {name: record[f"{kind}_accuracy"][name] for name in ("all", "many", "medium", "few")}
    known = [f"{name} {100 * value:.2f}" for name, value in shots.items() if value is not None]
    accuracies = " ".join(known) or "unknown, there are no images"
    terms = " ".join(f"{name} {record[name]:.4f}" for name in TERMS)
    head = f"epoch {record['epoch']}/{epochs}: {terms}"
    return f"{head} | {kind} accuracy %: {accuracies} | {record['seconds']:.1f} s"


def csv_text(records: list[dict]) -> str:
    """Formats records as CSV, one row each. Nested values become columns such as train_accuracy_few, lists
    columns such as train_class_accuracy_0; missing values are empty."""
    rows = [_flat(record) for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(value, name=""):
    """Flattens a value: dict of column -> plain value."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = (_flat(part, f"{name}_{key}" if name else str(key)) for key, part in items)
    return {column: plain for part in parts for column, plain in part.items()}


def writable_folder(folder):
    """Creates the folder if necessary, and returns it.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written: {error.strerror or error}") from None
    return folder


def write_text(path, text):
    """Replaces a text file as a whole, or leaves it unchanged."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class Attempts:
    """Tries to write files that a run can do without: warns once per kind of file, and retries next time.

    Every error counts as a failed write: torch and matplotlib have their own for a full disk.
    """

    def __init__(self):
        self.warned = set()

    def __call__(self, what, write, *args):
        """Returns whether ``write(*args)`` succeeded."""
        try:
            write(*args)
            self.warned.discard(what)
            return True
        except Exception as error:
            if what not in self.warned:
                say(f"warning: {what} not written, training continues: {first_line(error)}", sys.stderr)
                self.warned.add(what)
            return False

    def failing(self, what):
        """Tells whether the last attempt to write it failed."""
        return what in self.warned


def say(text, stream=None):
    """Prints a line, to stdout by default; a full disk or a closed pipe does not stop the run."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)


def show_warnings_plainly():
    """Shows warnings as one line on stderr, without the source line."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
