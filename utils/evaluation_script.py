"""The command line of both test scripts: flags, settings, and a run's detector applied to ``--images``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets.folders import files_below
from datasets.images import NORMALIZATIONS
from utils import flags
from utils.calibration import CALIBRATIONS
from utils.checkpoint import BEST, DATA_FLAGS, open_checkpoint, results_folder
from utils.detector import Detector, find_detector
from utils.distributed import Compute, in_main, is_first_process, start
from utils.errors import InputError, say
from utils.evaluation import Settings
from utils.fitting import needs_outliers
from utils.scores import score_names
from utils.text_files import csv_text, writable_folder, write_text

KEEP = 0.95  # the share of ID images that the detector keeps by default
# Flags that change no result: how and where the script runs, and where the data are.
LOCAL_FLAGS = {"ckpt_path", "images", "srp", "gpu", "num_workers", "tb", "figures"} | DATA_FLAGS
COLUMNS = ("class", "class_name", "probability", "score", "ood")  # of predictions.csv, after the path


def evaluation_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=flags.path, required=True, help="a run directory or a checkpoint file")
    which = "the last network of a run, as in the paper, or that of the epoch with the highest mean class "
    which += "accuracy on held-out training images (--val_fraction)"
    add("--select", choices=("last", "best"), default="last", help=which)
    images = "instead of evaluating the run, apply its detector to image files, or to all files in folders: "
    images += "prints classes, scores and decisions and writes predictions.csv; needs no data set; "
    images += "--calibration, --score and --keep override the detector's"
    add("--images", type=flags.path, nargs="+", metavar="PATH", help=images)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--calibration",
        nargs="+",
        choices=(*CALIBRATIONS, "auto"),
        help="none: the unchanged network; fc: feature calibration; probe: a linear head re-fitted on "
        "training features and outliers; auto: none, and the best one on the images held out by "
        "--val_fraction; default: none fc probe, or none where there are no outliers",
    )
    flags.add_boolean(ways, "--FC", help="True: --calibration none fc; False: --calibration none")
    strength = "S, which weakens FC's attention A to 1 + S (A - 1)"
    add("--fc_strength", type=flags.unit, default=1.0, help=strength)
    tnorm = "normalise the rows of the classifier and drop its bias"
    flags.add_boolean(parser, "--tnorm", default=False, help=tnorm)
    score = f"the score that the tables show, default {score_names()[0]} (result files hold all); with "
    score += "--images, the score that decides, default: the detector's"
    add("--score", choices=score_names(), help=score)
    keep = "the detector's threshold keeps this share of the held-out images, or else of the training "
    keep += f"images; default {KEEP}, with --images the detector's"
    add("--keep", type=flags.number(float, above=0, high=1), metavar="SHARE", help=keep)
    features = "also write features, logits and labels of every set, as features/SET.npz"
    flags.add_boolean(parser, "--save_features", default=False, help=features)
    add("--srp", type=flags.path, metavar="DIR", help="where results go; default: the run directory")
    add("--figures", choices=flags.FIGURES, default="png", help="format of the plots")
    pixels = "the mean and std used to normalise images, as in training (PASCL's networks: none); default: "
    pixels += "the checkpoint's, else the data set's"
    add("--normalization", choices=tuple(NORMALIZATIONS), help=pixels)
    used = "selects the images used to calibrate on ImageNet-LT; no effect on other data"
    add("--seed", type=flags.seed, default=3407, help=used)
    add("--gpu", default="0", help=flags.GPU)
    workers = "processes that read ImageNet files"
    add("--num_workers", "--cpus", type=flags.count, default=flags.WORKERS, help=workers)
    size = "images per batch"
    add("--test_batch_size", "--tb", dest="tb", type=flags.positive_int, default=1000, help=size)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=flags.PRECISION)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags; ``asked`` has those that change results and differ from their defaults."""
    args = parser.parse_args(argv)
    changed = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    args.asked = {name: value for name, value in changed.items() if name not in LOCAL_FLAGS}
    return args


def choose_settings(
    args: argparse.Namespace, has_held_out: bool, load_outliers: Callable[[], Any]
) -> tuple[Settings, Any, list[str]]:
    """Returns the settings that the flags ask for, the outliers that they need or None, and notes.

    By default, outliers that cannot be loaded leave only the calibration "none", and a note. Raises
    InputError if flags contradict each other or need outliers that cannot be loaded.
    """
    asked = args.calibration or {None: None, True: ["none", "fc"], False: ["none"]}[args.FC]
    names, score = asked or list(CALIBRATIONS), args.score or score_names()[0]
    split = getattr(args, "calibration_split", "train")
    if "auto" in names and (len(names) > 1 or not has_held_out):
        needs = "stands alone and chooses on images that --val_fraction held out of training"
        raise InputError(f"--calibration auto {needs}; else name some of none, fc, probe")
    for flag, given in (("--fc_strength", args.fc_strength != 1), ("--calibration_split", split == "test")):
        if given and "fc" not in names:
            raise InputError(f"{flag} is about feature calibration: add --calibration fc")
    outliers, notes = None, []
    if needs_outliers(names, score):
        try:
            outliers = load_outliers()
        except InputError as error:
            required = asked or split == "test" or getattr(args, "txt_ood_train", None)
            if required or needs_outliers(["none"], score):
                raise
            names = ["none"]
            notes.append(f"evaluated without outliers, so without fc, probe and combined ({error})")
    as_given = {name: getattr(args, name) for name in ("tnorm", "precision", "figures", "save_features")}
    return Settings(names, score, args.fc_strength, args.keep or KEEP, split, **as_given), outliers, notes


def data_of_run(args: argparse.Namespace, stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns where the data are, a path or a list of paths for each name in ``defaults``: as the flags say,
    else as in the run whose arguments are ``stored``, else the defaults."""
    found = {}
    for name, default in defaults.items():
        value = getattr(args, name) or stored.get(name) or default
        found[name] = [Path(one) for one in value] if isinstance(default, list) else Path(value)
    return found


def run_script(
    args: argparse.Namespace, identify: Callable[..., tuple[dict, list]], evaluate: Callable[..., None]
) -> None:
    """Evaluates a run, or applies its detector to ``--images``. ``identify(checkpoint, flags)`` says what
    network it is, with notes; ``evaluate(args, compute, checkpoint, what it is, notes, folder)`` writes."""
    if args.images:
        if "LOCAL_RANK" in os.environ:
            if not is_first_process():
                sys.exit(0)
            raise InputError("--images takes one process: start the script without torchrun")
        if settled := sorted(args.asked.keys() - {"calibration", "score", "keep"}):
            raise InputError(f"--{settled[0]} has no effect with --images: the detector is as evaluated")
        names = args.calibration or [None]
        if len(names) > 1 or "auto" in names:
            raise InputError("with --images give none, fc or probe to --calibration; default: the detector's")
        detector = Detector.load(args.ckpt_path, start(args.gpu).device, names[0], args.score, args.keep)
        predict_files(args.images, detector, args.srp or find_detector(args.ckpt_path).parent)
        return
    if args.select == "best" and not args.ckpt_path.is_dir():
        raise InputError(f"--select best takes a run directory, and {args.ckpt_path} is not one")
    compute = start(args.gpu)
    checkpoint = open_checkpoint(args.ckpt_path if args.select == "last" else args.ckpt_path / BEST)
    known, notes = identify(checkpoint, vars(args))
    if args.select == "best":
        notes.append(f"the network is that of epoch {checkpoint['epoch']}, the best on held-out images")
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))
    evaluate(args, compute, checkpoint, known, notes, out)


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
        rows.append({"path": str(path)} | dict(zip(COLUMNS, found, strict=True)))
        name = "" if found.name is None else f" ({found.name})"
        say(
            f"{path}: class {found.label}{name}, probability {found.probability:.4f}, "
            f"score {found.score:.4f}, {'OOD' if found.ood else 'ID'}"
        )
    if not rows:
        raise InputError(f"none of the files in {', '.join(map(str, paths))} can be read as an image")
    write_text(table, csv_text(rows))
    say(f"written: {table}, {len(rows)} images")
