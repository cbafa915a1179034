"""Which run ``--resume`` continues, with which flags, and whether what is there fits."""

import argparse
import json
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.checkpoint import DATA_FLAGS, holds_run, open_checkpoint, require_classes, stored_arguments
from utils.console import say
from utils.distributed import is_first_process
from utils.errors import InputError, first_line
from utils.guard import StepGuard
from utils.meter import EpochMeter
from utils.weights import load_weights, network_weights

ARGUMENTS = "args.json"  # in a run directory
# Flags that may change when a run is resumed: how and where it runs, and where its data are (see `restore`).
FREE_FLAGS = {"resume", "gpu", "num_workers", "srp", "tb", "checkpoint_every_minutes", "max_bad_steps"}
FREE_FLAGS |= DATA_FLAGS | {"compile", "figures", "init", "patience", "tensorboard"}


class TrainingData(NamedTuple):
    """What a run trains on.

    ``loader``: gives ``epoch(epoch, start_step)``, an iterator of Batch, and its length in steps.
    ``class_counts``: (C,) images by class. ``class_names``: C names, None if unknown.
    ``validation_batches``: () -> iterator of (images, labels) held out of training; None for no validation.
    """

    loader: Any
    class_counts: list[int]
    class_names: list[str] | None = None
    validation_batches: Callable[[], Iterator[tuple]] | None = None


class Trained(NamedTuple):
    """Everything that training changes and a checkpoint restores."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    guard: StepGuard


def parse_training(
    parser: argparse.ArgumentParser, argv: list[str] | None, defaults: dict[str, dict]
) -> argparse.Namespace:
    """Parses a training's command line; a run to resume has its own flags, but for those that are typed.

    A run that ended before its first checkpoint has its flags in ``args.json``.

    Args:
        argv: the words; None for those of the process.
        defaults: name of a data set -> defaults of the flags that depend on it; ``--help`` shows them.

    Raises:
        InputError: the checkpoint is damaged or not from a run, or its run is on another data set.
    """
    argv = sys.argv[1:] if argv is None else argv
    typed = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]
    folder = _run_folder(typed, defaults)
    stored = {} if typed.resume is None else _stored_flags(typed.resume, folder)
    ds = stored.get("ds", typed.ds)
    if ds not in defaults:
        script = "train_imagenet.py" if ds == "imagenet" else "train.py"
        raise InputError(
            f"the run in {typed.resume or folder} is of {reprlib.repr(ds)}: resume it with {script}"
        )
    names = vars(typed).keys() - {"resume", "srp"}
    own = {name: value for name, value in stored.items() if name in names}
    if "txt_ood_test" in own:
        own["txt_ood_test"] = [Path(path) for path in own["txt_ood_test"]]
    parser.set_defaults(**defaults[ds] | own)
    args = parser.parse_args(argv)
    args.srp = folder if args.resume == "" else _run_folder(args, defaults)
    return args


def _run_folder(args, defaults):
    """Returns the run directory, by default one named after data set, network and seed."""
    model = args.model or defaults[args.ds]["model"]
    return args.srp or Path("runs") / f"{args.ds}_{model}_{args.seed}"


def _stored_flags(resume, folder):
    """Returns the flags of the run in the file or folder ``resume``, by default in ``folder``."""
    if resume or holds_run(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged checkpoint; opening it again warns
            stored = stored_arguments(open_checkpoint(resume or folder))
        if not stored:
            raise InputError(f"{resume or folder} is not a checkpoint of train.py or train_imagenet.py")
        return stored
    try:
        stored = stored_arguments({"args": json.loads((folder / ARGUMENTS).read_text())})
    except (OSError, ValueError):
        stored = {}
    if is_first_process():
        flags = f", with the flags in {folder / ARGUMENTS}" if stored else ""
        say(f"no checkpoint in {folder} yet: starting from the beginning{flags}")
    return stored


def resumes(resume: str | None, folder: Path) -> bool:
    """Tells whether ``--resume`` has a checkpoint to continue from."""
    return resume is not None and (resume != "" or holds_run(folder))


def resumes_in_place(folder: Path, resume: str | None) -> bool:
    """Tells whether the run to resume is the one in ``folder``."""
    if resume is None:
        return False
    source = Path(resume or folder).resolve()
    return Path(folder).resolve() == (source if source.is_dir() else source.parent)


def find_checkpoint(folder: Path, resume: str | None, settings: dict) -> dict | None:
    """Returns the state to resume from, or None for a new run.

    Raises:
        InputError: it is not a checkpoint of a run, or flags that change the run differ from ``settings``.
    """
    if not resumes(resume, folder):
        return None
    source = Path(resume or folder)
    state = open_checkpoint(source)
    known = stored_arguments(state)
    if not known or not {"criterion", "optimizer", "epoch", "step"} <= state.keys():
        raise InputError(f"{source} is not a checkpoint of train.py or train_imagenet.py to resume from")
    if known.get("precision") == "auto":  # an older run, which did not record what that was on its device
        known = known | {"precision": settings["precision"]}
    for name, value in settings.items():
        stored = known.get(name, value)
        if name in FREE_FLAGS or stored == value:
            continue
        if name == "epochs":
            advice = "the schedule depends on it: train a run of that length in another --srp"
        else:
            advice = "omit the flag to keep the run's value, or start a new run in another --srp"
        raise InputError(f"--{name} is {value}, but the run to resume has {reprlib.repr(stored)}; {advice}")
    return state


def restore(state: dict, trained: Trained, data: TrainingData) -> None:
    """Restores everything as it was when ``state`` was saved.

    Raises:
        InputError: it is from other training images or outliers, or a run cannot resume from it.
    """
    require_classes(state, data.class_counts, data.class_names)
    if state.get("num_outliers") != data.loader.num_outliers:
        raise InputError(
            f"the outliers are not those of the run to resume: there are {data.loader.num_outliers:,}"
        )
    settings = trained.optimizer.state_dict()["param_groups"]  # as the flags say
    try:
        load_weights(trained.model, network_weights(state))
        trained.criterion.load_state_dict(state["criterion"])
        trained.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": settings})
        trained.guard.bad_in_row = int(state.get("bad_in_row", 0))
        torch.set_rng_state(state["rng"])
        EpochMeter(len(data.class_counts), "cpu").load_state(state["meter"])
    except InputError:
        raise
    except Exception as error:  # values of another kind can raise anything
        raise InputError(f"the checkpoint cannot be resumed: {first_line(error)}") from error
