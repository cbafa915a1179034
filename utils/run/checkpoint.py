"""Checkpoints that describe themselves, hold only tensors and plain values, and survive a crash while they
are written."""

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import reprlib
import shlex
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from utils.errors import InputError, first_line
from utils.run.pickles import Inspector, NotPlain, Refused, numpy_readers
from utils.run.weights import CONTAINERS

LATEST, PREVIOUS = "latest.pth", "previous.pth"
BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle, a number, of its files
DOS_FOLDER = 0x10


def save_checkpoint(state, folder):
    """Writes ``folder/latest.pth``; what was there becomes ``previous.pth``. See :func:`save_whole`."""
    save_whole(state, Path(folder) / LATEST, previous=Path(folder) / PREVIOUS)


def save_whole(state: dict, path: Path, previous: Path | None = None) -> None:
    """Writes a file for :func:`load_checkpoint`, which checks its checksums (a CRC-32 of every record).

    It is written under another name, flushed to the disk and renamed, so that a crash at any moment leaves a
    whole file.

    Args:
        state: nested dicts, lists, tensors and plain values.
        previous: what a whole file that is already there becomes; None replaces it.

    Raises:
        OSError: nothing that was there is lost.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and _is_whole(path):  # a damaged one must not take its place
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error}") from error


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, while training continues.

    The state is copied to the host before :meth:`save` returns. One checkpoint is written at a time: the next
    one waits for it. So a crash loses at most the epoch under way and the one whose checkpoint is being
    written.

    Args:
        folder: the run directory. attempt: :class:`utils.run.runlog.Attempts`, which reports what fails.
    """

    def __init__(self, folder, attempt):
        self.folder, self.attempt = folder, attempt
        self.thread = ThreadPoolExecutor(1)
        self.pending = None

    def save(self, state: dict) -> None:
        """Begins to write the state."""
        copy = _on_host(state)
        self.wait()
        self.pending = self.thread.submit(self.attempt, "the checkpoint", save_checkpoint, copy, self.folder)

    def wait(self) -> None:
        """Returns when what was begun is written, or has failed."""
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.thread.shutdown()


def _on_host(value):
    """A copy of nested dicts and lists whose tensors are on the CPU and shared with nobody."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def _sync_folder(folder):
    """The renames reach the disk, too; where a file system cannot promise that, there is nothing to do about
    it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_whole(path):
    """Whether there is a checkpoint whose checksums hold."""
    try:
        _check_archive(path)
    except InputError:
        return False
    return True


def _check_archive(path):
    """Returns the :class:`Inspector` of the pickle in a zip file, whose checksums it has verified.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {record.filename: record.file_size for record in archive.infolist()}
            folders = {name.partition("/")[0] for name in sizes}
            # Two readers might take different records of one name, and torch looks names up without regard to
            # case.
            if len(folders) != 1 or len({name.lower() for name in sizes}) < len(archive.infolist()):
                raise ValueError("its records are not those that torch writes")
            if any(record.external_attr & DOS_FOLDER for record in archive.infolist()):
                raise ValueError(
                    "a record of it is marked as a folder"
                )  # which torch takes for one without content
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("its records are compressed, which torch never writes")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            (folder,) = folders
            pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))
    except Exception as error:  # zipfile raises many kinds
        raise InputError(f"the checkpoint {path} is damaged: {first_line(error)}") from None
    return Inspector(pickled, lambda key: sizes.get(f"{folder}/data/{key}"))


def load_checkpoint(path):
    """Reads one checkpoint file, without running code from it.

    Raises:
        InputError: missing, damaged, or holding anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.read(4) == b"PK\x03\x04":  # what torch.load goes by
                _check_archive(path).load()
            else:
                file.seek(0)
                if file.read(len(BEFORE_TORCH_1_6)) != BEFORE_TORCH_1_6:
                    raise Refused("torch.save did not write it")
                file.seek(0)
                for _ in range(5):  # five pickles, then the storages
                    Inspector(file, lambda key: path.stat().st_size).load()
            with torch.serialization.safe_globals(numpy_readers()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's bytes make an unpickler raise
        why = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's: pages of advice around the reason
            why = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error)).partition("\n")[0][:200]
        elif isinstance(error, NotPlain):
            why = f"{error}; if you trust its author, run in the folder of its code: {_conversion(path)}"
        raise InputError(
            f"the checkpoint {path} cannot be read (only tensors and plain values are admitted): {why}"
        ) from None


def _conversion(path):
    """A command that writes the weights alone of a file that holds more; it runs code from the file."""
    source = path.resolve()
    target = source.with_name(f"{path.stem}-weights.pth")
    code = f'import torch; c = torch.load({json.dumps(str(source))}, "cpu", weights_only=False); '
    code += f"c = next((c[k] for k in {json.dumps(CONTAINERS)} if k in c), c) if isinstance(c, dict) else c; "
    code += 'c = c.state_dict() if hasattr(c, "state_dict") else c; '
    code += f"torch.save({{k: v for k, v in c.items() if torch.is_tensor(v)}}, {json.dumps(str(target))})"
    return shlex.join(["python", "-c", code])


def load_run(folder):
    """The newest whole checkpoint of a run directory; a damaged latest one falls back to the previous, with a
    warning.

    Raises:
        InputError: there is none.
    """
    folder = Path(folder)
    problems = []
    for name in (LATEST, PREVIOUS):
        if not (folder / name).is_file():
            continue
        try:
            state = load_checkpoint(folder / name)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}; using {folder / name} instead", stacklevel=2)
        return state
    raise InputError(problems[0] if problems else f"there is no checkpoint in {folder}")


def open_checkpoint(path):
    """Reads a run directory's newest checkpoint or a checkpoint file.

    Raises:
        InputError: see :func:`load_run` and :func:`load_checkpoint`.
    """
    return load_run(path) if Path(path).is_dir() else load_checkpoint(path)


def results_folder(path):
    """Where a checkpoint's results go: into the run directory, also for the latest.pth in it; for any other
    file into a folder of its own, ``FILE.results``, since one folder may hold many files."""
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent if path.name == LATEST else path.with_name(f"{path.name}.results")


def stored_arguments(checkpoint):
    """The arguments of the run that wrote a checkpoint; empty where it does not say."""
    stored = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    return stored if isinstance(stored, dict) else {}


def resolve_settings(given, stored, defaults, ranges):
    """What a checkpoint is: from its own arguments, else from the flags, else from the defaults.

    Args:
        given: dict of flag name to value, None where the flag was not given. stored: the checkpoint's
            arguments.
        defaults: dict of every name that is asked for. ranges: those that are numbers, with their types in
            utils/flags.py.

    Returns:
        (settings, assumed): dict with the names of ``defaults``, and the names that come from ``defaults``.

    Raises:
        InputError: a flag that contradicts the checkpoint, or an argument in it that no run has.
    """
    for name in defaults.keys() & stored.keys():
        if not _is_argument(stored[name], defaults[name], ranges.get(name)):
            raise InputError(
                f"the checkpoint says that its run had --{name} {reprlib.repr(stored[name])}, which "
                "no run has"
            )
    given = {name: value for name, value in given.items() if value is not None and name in defaults}
    for name in given.keys() & stored.keys():
        if given[name] != stored[name]:
            raise InputError(
                f"--{name} {given[name]} contradicts the checkpoint, which was trained with {stored[name]}"
            )
    settings = {name: stored.get(name, given.get(name, default)) for name, default in defaults.items()}
    return settings, [name for name in defaults if name not in stored and name not in given]


def progress_of(checkpoint):
    """``{seed, epoch, epochs}`` of the run that wrote a checkpoint, ``epoch`` the finished ones; None where
    it does not say."""
    stored = stored_arguments(checkpoint)
    epoch = checkpoint.get("epoch") if isinstance(checkpoint, dict) else None
    values = {"seed": stored.get("seed"), "epoch": epoch, "epochs": stored.get("epochs")}
    return {name: value if type(value) is int else None for name, value in values.items()}


def caveats(checkpoint, settings, assumed):
    """Sentences that a reader of the results has to know: what was assumed, and whether the run had ended.

    Args:
        settings: see :func:`resolve_settings`. assumed: the names in it to speak of.
    """
    sentences = []
    if assumed:
        words = " ".join(f"--{name} {settings[name]}" for name in assumed)
        sentences.append(f"assumed {words}, since neither the checkpoint nor a flag says so")
    progress = progress_of(checkpoint)
    if None not in progress.values() and progress["epoch"] < progress["epochs"]:
        sentences.append(f"the run is unfinished: epoch {progress['epoch']} of {progress['epochs']}")
    return sentences


def _is_argument(value, default, number):
    """Whether a stranger's value is of the kind of ``default``, and in the range of the type of flag
    ``number``."""
    if number is not None:
        try:
            return type(value) in (int, float) and number(str(value)) == value
        except argparse.ArgumentTypeError:
            return False
    words = value if isinstance(default, list) else [value]
    return isinstance(words, list) and all(
        isinstance(w, str) and len(w) <= 100 and w.isprintable() for w in words
    )


def differs(stored, value):
    """Whether a stranger's value is another than ours."""
    try:
        return bool(stored != value)
    except Exception:  # tensors, for one, have no single answer
        return True


def require_class_counts(checkpoint, class_counts):
    """Raises InputError where a checkpoint says how many training images each class had, and these are
    others."""
    stored = checkpoint.get("class_counts") if isinstance(checkpoint, dict) else None
    if stored is None or not differs(stored, class_counts):
        return
    if not isinstance(stored, list) or len(stored) != len(class_counts):
        where = f"there are {len(class_counts)} classes, not those of its run"
    else:
        c = next(c for c, size in enumerate(class_counts) if differs(stored[c], size))
        where = f"class {c} has {class_counts[c]:,} images, in its run {reprlib.repr(stored[c])}"
    raise InputError(f"the training images are not those of the checkpoint: {where}")


def load_optimizer(optimizer, stored):
    """Gives the optimiser the running averages of a checkpoint; its settings stay those of the flags.

    Raises:
        ValueError: they are not those of this kind of optimiser, or have other shapes than the parameters.
    """
    optimizer.load_state_dict(
        {"state": stored["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )
    names = (
        {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    )
    for parameter, averages in optimizer.state.items():
        if not isinstance(averages, dict) or averages and averages.keys() != names:
            raise ValueError("its optimiser is of another kind")
        if any(
            value.shape != (() if name == "step" else parameter.shape) for name, value in averages.items()
        ):
            raise ValueError("its optimiser is of other parameters")
