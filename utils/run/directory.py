"""A run's directory: its owner, its arguments, its log."""

import contextlib
import json
import os
import platform
import sys
from pathlib import Path

from utils.console import say
from utils.errors import InputError, first_line
from utils.losses import TERMS
from utils.text_files import csv_text, write_text

try:
    import fcntl
except ImportError:
    print("error: Windows is not supported; use Linux or WSL (Windows Subsystem for Linux)", file=sys.stderr)
    sys.exit(2)

LOCK = "run.lock"


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
                say(f"warning: {what} not written: {first_line(error)}", sys.stderr)
                self.warned.add(what)
            return False

    def failing(self, what):
        """Tells whether the last attempt to write it failed."""
        return what in self.warned
