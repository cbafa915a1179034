"""What both test scripts do around an evaluation, and a run's detector applied to ``--images``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets.folders import files_below
from utils.checkpoint import BEST, open_checkpoint, results_folder
from utils.console import say, show_warnings_plainly
from utils.detector import Detector, find_detector
from utils.distributed import Compute, finish, in_main, refuse_torchrun, start
from utils.errors import InputError
from utils.text_files import csv_text, writable_folder, write_text

# Flags, with their defaults, whose effect is stored in a detector.
SETTLED = {"FC": None, "fc_strength": 1, "tnorm": False, "precision": "auto", "normalization": None}
SETTLED |= {"ood_resize": "squash", "save_features": False, "select": "last"}


def run_script(
    args: argparse.Namespace,
    identify: Callable[[Any, dict[str, Any]], tuple[dict[str, Any], list[str]]],
    evaluate: Callable[[argparse.Namespace, Compute, Any, dict[str, Any], list[str], Path], None],
) -> None:
    """Evaluates a run, or applies its detector to ``--images``.

    ``identify(checkpoint, flags)`` says what network it is, with notes for readers; ``evaluate(args, compute,
    checkpoint, what it is, notes, output folder)`` writes the results.
    """
    show_warnings_plainly()
    if args.images:
        refuse_torchrun("--images")
        for name, default in SETTLED.items():
            if getattr(args, name, default) != default:
                raise InputError(f"--{name} has no effect with --images: the detector is as it was evaluated")
        names = args.calibration or [None]
        if len(names) > 1:
            raise InputError("with --images give one --calibration; default: the detector's")
        detector = Detector.load(args.ckpt_path, start(args.gpu).device, names[0], args.score, args.keep)
        predict_files(args.images, detector, args.srp or find_detector(args.ckpt_path).parent)
        return
    compute = start(args.gpu)
    checkpoint = open_checkpoint(args.ckpt_path if args.select == "last" else args.ckpt_path / BEST)
    known, notes = identify(checkpoint, vars(args))
    if args.select == "best":
        notes.append(f"the network is that of epoch {checkpoint['epoch']}, the best on held-out images")
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))
    evaluate(args, compute, checkpoint, known, notes, out)
    finish()


def warn(compute: Compute, notes: list[str]) -> None:
    for note in notes if compute.is_main else ():
        say(f"warning: {note}", sys.stderr)


def predict_files(paths: Sequence[Path], detector: Detector, folder: Path) -> None:
    """Prints a line for each image of files and folders, and writes ``predictions.csv`` to ``folder``; warns
    about files that it cannot read, and raises InputError if there is no other."""
    table = writable_folder(folder) / "predictions.csv"
    say(
        f"calibration {detector.calibration}, score {detector.score}; OOD above {detector.threshold:.4f}, "
        f"which keeps {100 * detector.keep:g} % of {detector.describe_images()}"
    )
    files, rows = [], []
    for path in paths:
        files += map(Path, sorted(files_below(path))) if path.is_dir() else [path]
    for path in dict.fromkeys(files):
        try:
            image = detector.preprocessing.of_file(path)
        except InputError as error:
            say(f"warning: {error}", sys.stderr)
            continue
        (found,) = detector.of_prepared(image[None])
        columns = ("class", "class_name", "probability", "score", "ood")
        rows.append({"path": str(path)} | dict(zip(columns, found, strict=True)))
        name = "" if found.name is None else f" ({found.name})"
        say(
            f"{path}: class {found.label}{name}, probability {found.probability:.4f}, "
            f"score {found.score:.4f}, {'OOD' if found.ood else 'ID'}"
        )
    if not rows:
        raise InputError(f"none of the files in {', '.join(map(str, paths))} can be read as an image")
    write_text(table, csv_text(rows))
    say(f"written: {table}, {len(rows)} images")
