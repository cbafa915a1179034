"""The flags of both test scripts, and the settings that they amount to."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets.normalization import NORMALIZATIONS
from utils import flags
from utils.calibration import CALIBRATIONS
from utils.errors import InputError
from utils.fitting import needs_outliers
from utils.scores import score_names

KEEP = 0.95  # the share of ID images that the detector keeps by default


class Settings(NamedTuple):
    """How a network is evaluated, by the flags of the same names. ``strength``: of FC."""

    calibrations: list[str]
    score: str
    strength: float
    tnorm: bool
    precision: str
    keep: float
    figures: str
    save_features: bool
    calibration_split: str = "train"


def evaluation_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=flags.path, required=True, help="a run directory or a checkpoint file")
    which = "the last network of a run, as in the paper, or that of the epoch with the highest mean class "
    which += "accuracy on held-out training images (--val_fraction)"
    add("--select", choices=("last", "best"), default="last", help=which)
    add(
        "--images",
        type=flags.path,
        nargs="+",
        metavar="PATH",
        help="instead of evaluating the run, apply its detector to image files, or to all files in folders: "
        "prints classes, scores and decisions and writes predictions.csv; needs no data set; of the other "
        "flags, --calibration, --score and --keep override the detector's, --gpu and --srp apply",
    )
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
    add(
        "--score",
        choices=score_names(),
        help=f"the score that the tables show, default {score_names()[0]} (result files hold all); with "
        "--images, the score that decides, default: the detector's",
    )
    add(
        "--keep",
        type=flags.number(float, above=0, high=1),
        metavar="SHARE",
        help="the detector's threshold keeps this share of the held-out images, or else of the training "
        f"images; default {KEEP}, with --images the detector's",
    )
    features = "also write features, logits and labels of every set, as features/SET.npz"
    flags.add_boolean(parser, "--save_features", default=False, help=features)
    add("--srp", type=flags.path, metavar="DIR", help="where results go; default: the run directory")
    add("--figures", choices=flags.FIGURES, default="png", help="format of the plots")
    add(
        "--normalization",
        choices=tuple(NORMALIZATIONS),
        help="the mean and std used to normalise images, as in training (PASCL's networks: none); "
        "default: the checkpoint's, else the data set's",
    )
    used = "selects the images used to calibrate on ImageNet-LT; no effect on other data"
    add("--seed", type=flags.seed, default=3407, help=used)
    add("--gpu", default="0", help=flags.GPU)
    workers = "processes that read ImageNet files"
    add("--num_workers", "--cpus", type=flags.count, default=flags.WORKERS, help=workers)
    size = "images per batch"
    add("--test_batch_size", "--tb", dest="tb", type=flags.positive_int, default=1000, help=size)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=flags.PRECISION)
    return parser


def choose_settings(
    args: argparse.Namespace, has_held_out: bool, load_outliers: Callable[[], Any]
) -> tuple[Settings, Any, list[str]]:
    """Returns the settings that the flags ask for, the outliers that they need or None, and notes.

    By default, outliers that cannot be loaded leave only the calibration "none", and a note.
    ``has_held_out``: whether the checkpoint's run held out training images.

    Raises:
        InputError: flags that contradict each other, "auto" without held-out images, or outliers that a flag
            needs and that cannot be loaded.
    """
    asked = args.calibration or {None: None, True: ["none", "fc"], False: ["none"]}[args.FC]
    names, score = asked or list(CALIBRATIONS), args.score or score_names()[0]
    split = getattr(args, "calibration_split", "train")
    if "auto" in names and (len(names) > 1 or not has_held_out):
        raise InputError(
            "--calibration auto stands alone and chooses on images that --val_fraction held out of training; "
            "else name calibrations: none, fc, probe"
        )
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
            notes.append(f"evaluated without outliers, so without fc, probe and combined: {error}")
    keep = KEEP if args.keep is None else args.keep
    flags_alone = (args.fc_strength, args.tnorm, args.precision, keep, args.figures, args.save_features)
    return Settings(names, score, *flags_alone, split), outliers, notes


def data_of_run(
    args: argparse.Namespace, stored: dict[str, Any], defaults: dict[str, Path | list[Path]]
) -> dict[str, Any]:
    """Returns where the data are, by the names in ``defaults``: as the flags say, else as in the run whose
    arguments are ``stored``, else the defaults."""
    found = {}
    for name, default in defaults.items():
        value = getattr(args, name) or stored.get(name) or default
        found[name] = [Path(one) for one in value] if isinstance(default, list) else Path(value)
    return found
