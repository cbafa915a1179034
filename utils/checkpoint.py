"""Checkpoints: files that are whole or absent and hold no code, and what a checkpoint says about its run."""

import argparse
import os
import pickle
import re
import reprlib
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import FAMILIES, build_model
from utils.errors import InputError, first_line
from utils.text_files import whole_file

LATEST, PREVIOUS, BEST = "latest.pth", "previous.pth", "best.pth"
# Flags that say where a run's data are.
DATA_FLAGS = {"drp", "txtt", "txtv", "iidp", "iodp", "txt_ood_train", "txt_ood_test"}
CONTAINERS = ("model", "state_dict", "net", "model_state_dict")  # where third-party checkpoints keep weights
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel, DistributedDataParallel, torch.compile
BACKBONE = re.compile(r"^(conv|bn|layer)\d|\b(shortcut|downsample)\b")
WHICH = {
    "cifar": "a {0} for small images (train.py, --model {0})",
    "imagenet": "a {0} for photographs (train_imagenet.py, --model {0})",
}


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


# --- Networks


def network_weights(checkpoint: Any) -> dict[str, Tensor]:
    """Returns the network's weights in our own or a third-party checkpoint: bare or inside one of
    ``CONTAINERS``, with any of ``WRAPPERS`` before the names.

    Raises:
        InputError: there are no tensors, or two of the same name.
    """
    named = [(WRAPPERS.sub("", key), value) for key, value in _named_tensors(checkpoint)]
    weights = dict(named)
    if not weights:
        keys = (
            f"its keys are {some(checkpoint)}" if isinstance(checkpoint, dict) else "it is not a dictionary"
        )
        raise InputError(
            f"the checkpoint holds no network weights, neither bare nor in {', '.join(CONTAINERS)}: {keys}"
        )
    if len(weights) < len(named):
        raise InputError("the checkpoint holds weights of one name with and without a prefix such as module.")
    return weights


def _named_tensors(holder, depth=3):
    """Returns [(key, tensor)] of the first container in a dict that has tensors, else of the dict."""
    if not isinstance(holder, dict) or depth == 0:
        return []
    for key in CONTAINERS:
        if found := _named_tensors(holder.get(key), depth - 1):
            return found
    return [
        (key, value)
        for key, value in holder.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not value.is_complex()
    ]


def some(names, number: int = 9) -> str:
    """Formats the first of some untrusted names."""
    names = list(names)
    rest = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(map(reprlib.repr, names[:number])) + rest


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Loads every key the network has, strictly; returns the sorted names of the checkpoint's other keys.

    Raises:
        InputError: the backbone is not the network's, or a key is missing, has another shape, or holds a
            non-finite value.
    """
    wanted = model.state_dict()
    problem = _misfit(wanted, weights)
    if problem:
        raise InputError(f"the checkpoint does not fit the network: {problem}")
    for key in weights.keys() & wanted.keys():
        if not bool(torch.isfinite(weights[key]).all()):
            raise InputError(f"the checkpoint's {key} holds values that are not finite")
    model.load_state_dict(wanted | {key: weights[key] for key in wanted if key in weights})
    return sorted(set(weights) - set(wanted))


def _misfit(wanted, weights):
    """Explains why weights do not fit a network with the state ``wanted``; None if they do."""
    outputs = [state["linear.weight"].shape[:1] for state in (wanted, weights) if "linear.weight" in state]
    if len(outputs) == 2 and outputs[1] == (outputs[0][0] + 1,):
        return (
            f"it has {outputs[1][0]} outputs for {outputs[0][0]} classes; networks with an outlier class, "
            "such as COCL's, cannot be evaluated"
        )
    # BatchNorm's batch counters are not weights; old checkpoints lack them.
    missing = [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]
    surplus = [k for k in weights if k not in wanted]
    surplus_backbone = [k for k in surplus if k in _backbone(weights)]
    likely = None if _backbone(weights) == _backbone(wanted) else network_of(weights)
    advice = "" if likely is None else f"; by its keys it is {WHICH[likely[0]].format(likely[1])}"
    if missing:
        instead = f", and has {some(surplus, 3)}" if surplus else ""
        return f"it lacks {len(missing)} keys, such as {some(missing, 3)}{instead}{advice}"
    if surplus_backbone:
        more, which = len(surplus_backbone), some(surplus_backbone, 3)
        return f"it has {more} more keys of a backbone, such as {which}{advice}"
    for key in wanted:
        if key in weights and weights[key].shape != wanted[key].shape:
            there, here = tuple(weights[key].shape), tuple(wanted[key].shape)
            return f"{key} is {there} in the checkpoint, {here} in the network{advice}"
    return None


def network_of(weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """Returns the (family, name) in ``models.FAMILIES`` with this backbone, by names and shapes, or None."""
    backbone = _backbone(weights)
    return next((network for network, shapes in _backbones().items() if shapes == backbone), None)


@cache
def _backbones():
    """Returns the backbone of every network here, by (family, name)."""
    with torch.device("meta"):
        return {
            (family, name): _backbone(build_model(name, num_classes=2, family=family).state_dict())
            for family, networks in FAMILIES.items()
            for name in networks
        }


def _backbone(state):
    """Returns name -> shape of the weights before the classifier; added heads have other names."""
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if BACKBONE.search(key) and not key.endswith("num_batches_tracked")
    }


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
