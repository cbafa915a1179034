"""What a checkpoint says about its run: its flags, its progress, its training images."""

import argparse
import contextlib
import json
import os
import reprlib
import warnings
from collections.abc import Callable
from pathlib import Path

from utils.console import say
from utils.errors import InputError
from utils.run.checkpoint import holds_run, open_checkpoint

ARGUMENTS = "args.json"  # in a run directory
# Flags that say where a run's data are.
DATA_FLAGS = {"drp", "txtt", "txtv", "iidp", "iodp", "txt_ood_train", "txt_ood_test"}


def with_flags_of_run(
    parser: argparse.ArgumentParser, argv: list[str], run_folder: Callable[[argparse.Namespace], Path]
) -> list[str]:
    """Returns a training's command line; with ``--resume``, preceded by the flags of the run to resume.

    So a run resumes with its own flags, and flags typed by the user still count. One that ended before its
    first checkpoint has them in ``args.json``. ``run_folder`` gives the run directory of a command line.

    Raises:
        InputError: the checkpoint is damaged or of no run, or its run is of a data set that ``parser`` does
            not know.
    """
    known = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]
    if known.resume is None:
        return argv
    source = known.resume or run_folder(known)
    if known.resume or holds_run(source):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged checkpoint; opening it again warns
            stored = stored_arguments(open_checkpoint(source))
        if not stored:
            raise InputError(f"{source} is no checkpoint of train.py or train_imagenet.py to resume from")
    else:
        stored = _begun(source)
        if int(os.environ.get("RANK", 0)) == 0:
            flags = f", with the flags in {source / ARGUMENTS}" if stored else ""
            say(f"no checkpoint in {source} yet: starting from the beginning{flags}")
    ds, choices = stored.get("ds"), {action.dest: action.choices for action in parser._actions}
    if isinstance(ds, str) and ds not in choices.get("ds", [ds]):
        script = "train_imagenet.py" if ds == "imagenet" else "train.py"
        raise InputError(f"the run in {source} is of {reprlib.repr(ds)}: resume it with {script}")
    words = _as_words(parser, stored, {a.dest for a in parser._actions} - {"resume", "srp", "help"})
    return [*words, *([] if known.resume else [f"--srp={source}"]), *argv]


def _begun(folder):
    """Returns the arguments of a run that has no checkpoint yet; empty if none has begun in the folder."""
    try:
        stored = json.loads((folder / ARGUMENTS).read_text())
    except (OSError, ValueError):
        return {}
    return stored_arguments({"args": stored})


def with_data_of_run(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Returns the words of an evaluation's command line, after those that say where the run's data are.

    Where the checkpoint cannot be read it leaves the words alone: opening it again says why.
    """
    if {"-h", "--help"} & set(argv):
        return argv
    known = parser.parse_known_args(argv)[0]
    if known.images:  # these need no data
        return argv
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("ignore")  # of a damaged checkpoint; opening it again warns
        return [*_as_words(parser, stored_arguments(open_checkpoint(known.ckpt_path)), DATA_FLAGS), *argv]
    return argv


def _as_words(parser, values, names):
    """Returns the command line for the flags ``names``, so untrusted values are parsed like typed ones."""
    words = []
    for action in parser._actions:
        value = values.get(action.dest) if action.dest in names else None
        if value is None or value == []:
            continue
        if isinstance(value, list):
            if any(str(word).startswith("-") for word in value):  # it would be a flag of its own
                raise InputError(
                    f"the checkpoint says that its run had --{action.dest} {reprlib.repr(value)}, which no "
                    "run has"
                )
            words += [action.option_strings[0], *map(str, value)]
        else:
            words.append(f"{action.option_strings[0]}={value}")
    return words


def stored_arguments(checkpoint):
    """Returns the arguments of the run that wrote a checkpoint; empty if they are not stored."""
    stored = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    return stored if isinstance(stored, dict) else {}


def resolve_settings(given, stored, defaults, ranges):
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
            raise InputError(
                f"the checkpoint says that its run had --{name} {reprlib.repr(stored[name])}, which "
                "no run has"
            )
    given = {name: value for name, value in given.items() if value is not None and name in defaults}
    for name in given.keys() & stored.keys():
        if isinstance(given[name], list):
            agrees = set(given[name]) <= set(stored[name])
        else:
            agrees = given[name] == stored[name]
        if not agrees:
            raise InputError(
                f"--{name} {_shown(given[name])} contradicts the checkpoint, which was trained with "
                f"{_shown(stored[name])}"
            )
    settings = {name: stored.get(name, given.get(name, default)) for name, default in defaults.items()}
    return settings, [name for name in defaults if name not in stored and name not in given]


def _shown(value):
    """Formats a flag's value as it is typed."""
    return (" ".join(value) or "none") if isinstance(value, list) else value


def _is_argument(value, default, number):
    """Tells whether an untrusted value has the kind of ``default``, or the range of flag type ``number``."""
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
    """Tells whether an untrusted value differs from ours."""
    try:
        return bool(stored != value)
    except Exception:  # comparing tensors, for example, has no single answer
        return True


def progress_of(checkpoint):
    """Returns ``{seed, epoch, epochs}`` of the run that wrote a checkpoint, ``epoch`` counting finished ones;
    None if not stored."""
    stored = stored_arguments(checkpoint)
    epoch = checkpoint.get("epoch") if isinstance(checkpoint, dict) else None
    values = {"seed": stored.get("seed"), "epoch": epoch, "epochs": stored.get("epochs")}
    return {name: value if type(value) is int else None for name, value in values.items()}


def caveats(checkpoint, settings, assumed):
    """Returns sentences for readers of the results: what was assumed, and whether the run is unfinished.

    Args:
        settings: see :func:`resolve_settings`. assumed: the names in it to mention.
    """
    sentences = []
    if assumed:
        words = " ".join(f"--{name} {settings[name]}" for name in assumed)
        sentences.append(f"assumed {words}, since neither the checkpoint nor a flag says so")
    progress = progress_of(checkpoint)
    if None not in progress.values() and progress["epoch"] < progress["epochs"]:
        sentences.append(f"the run is unfinished: epoch {progress['epoch']} of {progress['epochs']}")
    return sentences


def require_class_counts(checkpoint, class_counts):
    """Raises InputError if the checkpoint stores other class counts than these."""
    stored = checkpoint.get("class_counts") if isinstance(checkpoint, dict) else None
    if stored is None or not differs(stored, class_counts):
        return
    if not isinstance(stored, list) or len(stored) != len(class_counts):
        where = f"there are {len(class_counts)} classes, not those of its run"
    else:
        c = next(c for c, size in enumerate(class_counts) if differs(stored[c], size))
        where = f"class {c} has {class_counts[c]:,} images, in its run {reprlib.repr(stored[c])}"
    raise InputError(f"the training images are not those of the checkpoint: {where}")
