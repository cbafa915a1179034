"""Checkpoints: files that are whole or absent and hold no code, what they say about their run, and which run
``--resume`` continues with which flags."""

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.distributed import is_first_process
from utils.errors import InputError, first_line, say
from utils.text_files import whole_file

LATEST, PREVIOUS, BEST = "latest.pth", "previous.pth", "best.pth"
ARGUMENTS = "args.json"  # in a run directory
# Flags that say where a run's data are.
DATA_FLAGS = {"drp", "txtt", "txtv", "iidp", "iodp", "txt_ood_train", "txt_ood_test"}
# Flags that may change when a run is resumed: how and where it runs, and where its data are.
FREE_FLAGS = {"resume", "gpu", "num_workers", "srp", "tb", "checkpoint_every_minutes", "max_bad_steps"}
FREE_FLAGS |= DATA_FLAGS | {"compile", "figures", "init", "patience", "tensorboard"}


def save_checkpoint(state: dict, path: Path) -> None:
    """Writes a file for :func:`load_checkpoint`; a crash at any moment, or an OSError, leaves a whole file. A
    whole ``latest.pth`` becomes ``previous.pth``, others are replaced."""
    buffer = io.BytesIO()  # of a full disk torch's own error would not say so
    torch.save(on_device("cpu", state), buffer)
    with whole_file(path, "xb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        if path.name == LATEST:
            with contextlib.suppress(InputError):  # a damaged file must not become the previous one
                load_checkpoint(path)
                os.replace(path, path.with_name(PREVIOUS))


def on_device(device: torch.device | str, value: Any) -> Any:
    """Returns nested dicts with their tensors on a device."""
    if isinstance(value, dict):
        return {key: on_device(device, item) for key, item in value.items()}
    return value.detach().to(device) if isinstance(value, Tensor) else value


def _number(dtype: np.dtype, data: bytes) -> bool | int | float | complex:
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
    Raises InputError if it is missing, damaged, or holds more than tensors and plain values."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):  # not so before torch 1.6; torch itself does not check the sums
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the record {damaged} is not as it was written")
        with warnings.catch_warnings(), torch.serialization.safe_globals(READABLE):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch surrounds the reason with pages of advice
        why = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error)).partition(". ")[0]
        reason = f"holds more than tensors and plain values ({first_line(why)})"
        raise InputError(f"the checkpoint {path} {reason}: save its weights alone in another") from None
    except Exception as error:  # damaged bytes can raise anything
        raise InputError(f"the checkpoint {path} is damaged: {first_line(error)}") from None


def open_checkpoint(path: Path | str) -> Any:
    """Reads a checkpoint file, or the newest whole one of a run; warns if that is not the latest."""
    if not Path(path).is_dir():
        return load_checkpoint(path)
    latest, previous = Path(path) / LATEST, Path(path) / PREVIOUS
    try:
        return load_checkpoint(latest)
    except InputError as error:
        if not previous.exists():
            raise
        warnings.warn(f"{error}; using {previous} instead", stacklevel=1)
        return load_checkpoint(previous)


def holds_run(folder: Path) -> bool:
    """Tells whether there is a checkpoint."""
    return (Path(folder) / LATEST).exists() or (Path(folder) / PREVIOUS).exists()


def results_folder(path: Path | str) -> Path:
    """Returns the folder for a checkpoint's results: its run directory, or ``FILE.results`` for other files
    than latest.pth, since one folder may hold many."""
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent if path.name == LATEST else path.with_name(f"{path.name}.results")


def stored_arguments(checkpoint: Any) -> dict[str, Any]:
    """Returns the arguments of a checkpoint's run; empty if they are not stored."""
    stored = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    return stored if isinstance(stored, dict) else {}


def resolve_settings(given: dict, stored: dict, defaults: dict) -> tuple[dict, list[str]]:
    """Returns a checkpoint's settings, by the names of ``defaults``, from its arguments, else from flags that
    are not None, else from ``defaults``; and the names of the latter. Raises InputError if a flag contradicts
    the checkpoint (a list agrees with one that contains it)."""
    given = {name: value for name, value in given.items() if value is not None and name in defaults}
    for name in given.keys() & stored.keys():
        ours, theirs = given[name], stored[name]
        agrees = set(ours) <= set(theirs) if isinstance(ours, list) else ours == theirs
        if not agrees:
            raise InputError(f"--{name} {ours} contradicts the checkpoint, which was trained with {theirs}")
    settings = {name: stored.get(name, given.get(name, default)) for name, default in defaults.items()}
    return settings, [name for name in defaults if name not in stored and name not in given]


def progress_of(checkpoint: Any) -> dict[str, int | None]:
    """Returns ``{seed, epoch, epochs}`` of a run, None if not stored; ``epoch`` counts finished ones."""
    stored = stored_arguments(checkpoint)
    values = {"seed": stored.get("seed"), "epoch": checkpoint.get("epoch"), "epochs": stored.get("epochs")}
    return {name: value if type(value) is int else None for name, value in values.items()}


def is_unfinished(checkpoint: Any) -> bool:
    """Tells whether a checkpoint is known to be from the middle of its run."""
    progress = progress_of(checkpoint)
    if None in (progress["epoch"], progress["epochs"]) or checkpoint.get("finished") is True:
        return False  # --patience ends runs early, and best.pth is from the best epoch
    return progress["epoch"] < progress["epochs"]


def caveats(checkpoint: Any, settings: dict, assumed: list[str]) -> list[str]:
    """Returns sentences on ``assumed``, ``settings`` that were not stored, and on an unfinished run."""
    sentences = []
    if assumed:
        words = " ".join(f"--{name} {settings[name]}" for name in assumed)
        sentences.append(f"assumed {words}, since neither the checkpoint nor a flag says so")
    if is_unfinished(checkpoint):
        progress = progress_of(checkpoint)
        sentences.append(f"the run is unfinished: epoch {progress['epoch']} of {progress['epochs']}")
    return sentences


def require_classes(checkpoint: Any, class_counts: list[int], class_names: list[str] | None = None) -> None:
    """Raises InputError if the training images, counted and named by class, are not those of the checkpoint's
    run, as far as it knows."""
    problem = "the training images are not those of the checkpoint"
    for key, ours in (("class_names", class_names), ("class_counts", class_counts)):
        theirs = checkpoint.get(key)
        if ours is None or theirs is None or ours == theirs:
            continue
        if len(theirs) != len(ours):
            raise InputError(f"{problem}: there are {len(ours)} classes, in its run {len(theirs)}")
        c = next(c for c in range(len(ours)) if ours[c] != theirs[c])
        raise InputError(f"{problem}: {key}[{c}] is {ours[c]!r} here, in its run {theirs[c]!r}")


def parse_training(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    defaults: dict[str, dict],
    recipes: dict[str, dict],
) -> argparse.Namespace:
    """Parses a training's command line; a run to resume has its own flags, but for those that are typed.
    ``defaults``: name of a data set -> defaults of the flags that depend on it; ``--help`` shows them.
    ``recipes``: value of ``--recipe`` -> defaults that it changes. Raises InputError if the checkpoint is
    damaged or not from a run, or its run is on another data set."""
    argv = sys.argv[1:] if argv is None else argv
    typed = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]
    folder = _run_folder(typed, defaults)
    stored = {} if typed.resume is None else _stored_flags(typed.resume, folder)
    ds = stored.get("ds", typed.ds)
    if ds not in defaults:
        raise InputError(f"the run in {typed.resume or folder} is of {ds}: resume it with its own script")
    own = {name: stored[name] for name in stored.keys() & vars(typed).keys() - {"resume", "srp"}}
    parser.set_defaults(**defaults[ds] | recipes.get(typed.recipe, {}) | own)
    args = parser.parse_args(argv)
    args.srp = folder if args.resume == "" else _run_folder(args, defaults)
    return args


def _run_folder(args, defaults):
    if args.resume and not args.srp and Path(args.resume).is_dir():
        return Path(args.resume)
    model = args.model or defaults[args.ds]["model"]
    return args.srp or Path("runs") / f"{args.ds}_{model}_{args.seed}"


def _stored_flags(resume, folder):
    if resume or holds_run(folder):
        stored = stored_arguments(open_checkpoint(resume or folder))
        if not stored:
            raise InputError(f"{resume or folder} is not a checkpoint of train.py or train_imagenet.py")
        return stored
    found = (folder / ARGUMENTS).exists()
    if is_first_process():
        flags = f", with the flags in {folder / ARGUMENTS}" if found else ""
        say(f"no checkpoint in {folder} yet: starting from the beginning{flags}")
    return json.loads((folder / ARGUMENTS).read_text()) if found else {}


def resumes(resume: str | None, folder: Path) -> bool:
    """Tells whether ``--resume`` has a checkpoint to continue from."""
    return resume is not None and (resume != "" or holds_run(folder))


def resumes_in_place(folder: Path, resume: str | None) -> bool:
    """Tells whether the run to resume is the one in ``folder``, from its latest checkpoint."""
    if resume is None or (not Path(resume).is_dir() and Path(resume).name not in ("", LATEST)):
        return False  # from an earlier checkpoint, later epochs would be lost
    return Path(folder).resolve() == run_folder(resume or folder).resolve()


def run_folder(checkpoint: Path | str) -> Path:
    """Returns the run directory of a checkpoint, which may be named by its directory."""
    return Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent


def find_checkpoint(folder: Path, resume: str | None, settings: dict) -> dict | None:
    """Returns the state to resume from, or None; raises InputError if ``settings`` are not the run's."""
    if not resumes(resume, folder):
        return None
    state = open_checkpoint(resume or folder)
    known = stored_arguments(state)
    for name, value in settings.items():
        stored = known.get(name, False if value is True else value)  # newer switches were off
        if name not in FREE_FLAGS and stored != value:
            advice = "omit the flag to keep the run's value, or start a new run in another --srp"
            raise InputError(f"--{name} is {value}, but the run to resume has {stored!r}; {advice}")
    return state
