"""Checkpoints: files that are whole or absent and hold no code, and what a checkpoint says about its run."""

import argparse
import os
import pickle
import re
import reprlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, first_line
from utils.text_files import whole_file

LATEST, PREVIOUS, BEST = "latest.pth", "previous.pth", "best.pth"
# Flags that say where a run's data are.
DATA_FLAGS = {"drp", "txtt", "txtv", "iidp", "iodp", "txt_ood_train", "txt_ood_test"}


# --- Files


def save_checkpoint(state: dict, folder: Path) -> None:
    """Writes ``folder/latest.pth``; the file it replaces becomes ``previous.pth``. See :func:`save_whole`."""
    save_whole(state, Path(folder) / LATEST, previous=Path(folder) / PREVIOUS)


def save_whole(state: dict, path: Path, previous: Path | None = None) -> None:
    """Writes a file for :func:`load_checkpoint`; a crash at any moment leaves a whole file.

    Args:
        state: nested dicts, lists, tensors and plain values.
        previous: the new name of a whole file at ``path``; None replaces that file.

    Raises:
        OSError: it cannot be written; existing files are kept.
    """
    try:
        with whole_file(path, "xb") as file:
            torch.save(_on_cpu(state), file)
            file.flush()
            os.fsync(file.fileno())
            if previous is not None and _is_whole(path):  # a damaged file must not become the previous one
                os.replace(path, previous)
    except (OSError, RuntimeError) as error:  # torch's own error, of a full disk, hides the system's
        raise OSError(f"{path} could not be written: {error.__context__ or error}") from error


def _on_cpu(value):
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _is_whole(path):
    try:
        _check_sums(path)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _check_sums(path):
    """Raises ValueError, OSError or BadZipFile if a file is damaged, which torch itself does not notice.

    Files from before torch 1.6 are not zip files and have no checksums.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError("it is empty")
    if start == b"PK\x03\x04":  # as torch.load decides
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            # Attributes have no checksum, and torch leaves a tensor uninitialised if they say folder.
            folders = [record.filename for record in archive.infolist() if record.external_attr & 0x10]
        if damaged or folders:
            raise ValueError(f"the record {damaged or folders[0]} is not as it was written")


def _number(dtype: np.dtype, data: bytes) -> bool | int | float | complex:
    """Reads a pickled numpy scalar as a Python number."""
    return np.frombuffer(data, dtype)[0].item()


READABLE = [
    (_number, "numpy.core.multiarray.scalar"),  # in numpy 1
    (_number, "numpy._core.multiarray.scalar"),  # in numpy 2
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdFD"},
    argparse.Namespace,
]


def load_checkpoint(path: Path | str) -> Any:
    """Reads a checkpoint file onto the CPU without running code from it; numpy's scalars become Python's.

    Raises:
        InputError: it is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        _check_sums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(READABLE):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch surrounds the reason with pages of advice
        why = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error)).partition(". ")[0]
        raise InputError(
            f"the checkpoint {path} holds more than tensors and plain values ({first_line(why)}); if you "
            'trust its author, save its weights alone: torch.save(torch.load(FILE, weights_only=False)["'
            'state_dict"], NEW)'
        ) from None
    except Exception as error:  # damaged bytes can raise anything
        raise InputError(f"the checkpoint {path} is damaged: {first_line(error)}") from None


def load_run(folder: Path | str) -> Any:
    """Loads the newest whole checkpoint of a run directory; warns if that is not the latest one.

    Raises:
        InputError: there is none.
    """
    problems = []
    for path in (Path(folder) / LATEST, Path(folder) / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = load_checkpoint(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}; using {path} instead", stacklevel=2)
        return state
    raise InputError("; and ".join(problems) or f"there is no checkpoint in {folder}")


def open_checkpoint(path: Path | str) -> Any:
    """Reads a checkpoint file, or the newest checkpoint of a run directory.

    Raises:
        InputError: see :func:`load_run` and :func:`load_checkpoint`.
    """
    return load_run(path) if Path(path).is_dir() else load_checkpoint(path)


def holds_run(folder: Path) -> bool:
    """Tells whether there is a checkpoint; a crash between a save's two renames leaves the previous one."""
    return (Path(folder) / LATEST).exists() or (Path(folder) / PREVIOUS).exists()


def results_folder(path: Path | str) -> Path:
    """Returns the folder for a checkpoint's results: the run directory, for it or its latest.pth; for any
    other file ``FILE.results``, since one folder may hold many files."""
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent if path.name == LATEST else path.with_name(f"{path.name}.results")


# --- What a checkpoint says about its run


def stored_arguments(checkpoint: Any) -> dict[str, Any]:
    """Returns the arguments of the run that wrote a checkpoint; empty if they are not stored."""
    stored = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    return stored if isinstance(stored, dict) else {}


def resolve_settings(given: dict, stored: dict, defaults: dict, ranges: dict) -> tuple[dict, list[str]]:
    """Determines the settings of a checkpoint: from its own arguments, else the flags, else the defaults.

    Args:
        given: dict of flag name to value, None where the flag was not given. stored: the checkpoint's
            arguments.
        defaults: dict of all wanted names. ranges: the numeric ones, with their types in utils/flags.py.

    Returns:
        (settings, assumed): dict with the names of ``defaults``, and the names that come from ``defaults``.

    Raises:
        InputError: a flag contradicts the checkpoint (a list agrees with one that contains it), or an
            argument in it is impossible.
    """
    for name in defaults.keys() & stored.keys():
        if not _is_argument(stored[name], defaults[name], ranges.get(name)):
            value = reprlib.repr(stored[name])
            raise InputError(f"the checkpoint's --{name} {value} is not a value of that flag")
    given = {name: value for name, value in given.items() if value is not None and name in defaults}
    for name in given.keys() & stored.keys():
        ours, theirs = given[name], stored[name]
        agrees = set(ours) <= set(theirs) if isinstance(ours, list) else ours == theirs
        if not agrees:
            shown = [" ".join(v) or "none" if isinstance(v, list) else v for v in (ours, theirs)]
            raise InputError(
                f"--{name} {shown[0]} contradicts the checkpoint, which was trained with {shown[1]}"
            )
    settings = {name: stored.get(name, given.get(name, default)) for name, default in defaults.items()}
    return settings, [name for name in defaults if name not in stored and name not in given]


def _is_argument(value, default, number):
    """Tells whether an untrusted value has the kind of ``default``, or the range of flag type ``number``."""
    if number is not None:
        try:
            return type(value) in (int, float) and number(str(value)) == value
        except argparse.ArgumentTypeError:
            return False
    words = value if isinstance(default, list) else [value]
    return isinstance(words, list) and all(isinstance(w, str) and w.isprintable() for w in words)


def progress_of(checkpoint: Any) -> dict[str, int | None]:
    """Returns ``{seed, epoch, epochs}`` of the run that wrote a checkpoint, ``epoch`` counting finished ones;
    None if not stored."""
    stored = stored_arguments(checkpoint)
    epoch = checkpoint.get("epoch") if isinstance(checkpoint, dict) else None
    values = {"seed": stored.get("seed"), "epoch": epoch, "epochs": stored.get("epochs")}
    return {name: value if type(value) is int else None for name, value in values.items()}


def is_unfinished(checkpoint: Any) -> bool:
    """Tells whether a checkpoint is known to be from the middle of its run."""
    progress = progress_of(checkpoint)
    if None in (progress["epoch"], progress["epochs"]) or checkpoint.get("finished") is True:
        return False  # --patience ends runs early, and best.pth is from the best epoch
    return progress["epoch"] < progress["epochs"]


def caveats(checkpoint: Any, settings: dict, assumed: list[str]) -> list[str]:
    """Returns sentences for readers of the results: what was assumed, whether the run is unfinished, and
    which of two networks was taken.

    Args:
        settings: see :func:`resolve_settings`. assumed: the names in it to mention.
    """
    sentences = []
    if assumed:
        words = " ".join(f"--{name} {settings[name]}" for name in assumed)
        sentences.append(f"assumed {words}, since neither the checkpoint nor a flag says so")
    progress = progress_of(checkpoint)
    if is_unfinished(checkpoint):
        sentences.append(f"the run is unfinished: epoch {progress['epoch']} of {progress['epochs']}")
    if isinstance(checkpoint, dict) and {"state_dict", "state_dict_ema"} <= checkpoint.keys():
        sentences.append("the checkpoint's state_dict was taken, not the state_dict_ema beside it")
    return sentences


def require_classes(checkpoint: Any, class_counts: list[int], class_names: list[str] | None = None) -> None:
    """Compares training images with those of the checkpoint's run, where it stores what they were.

    Args:
        class_counts: images by class. class_names: names by class; None if unknown.

    Raises:
        InputError: the number of classes, a class's name or its number of images differs.
    """
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    for key, ours in (("class_names", class_names), ("class_counts", class_counts)):
        theirs = checkpoint.get(key)
        if ours is None or theirs is None:
            continue
        if not isinstance(theirs, list) or len(theirs) != len(ours):
            what = f"there are {len(ours)} classes, not those of its run"
            raise InputError(f"the training images are not those of the checkpoint: {what}")
        for c, (here, there) in enumerate(zip(ours, theirs, strict=True)):
            if type(here) is not type(there) or here != there:
                there = reprlib.repr(there)
                what = f"is {here!r} here, in its run {there}"
                if key == "class_counts":
                    what = f"has {here:,} images, in its run {there}"
                raise InputError(f"the training images are not those of the checkpoint: class {c} {what}")
