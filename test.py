"""Evaluates a checkpoint of train.py, or a third-party one, on its test set and OOD sets, with and without
calibration.

    python test.py --gpu 0 --ds cifar10 --FC True --drp DATA --ckpt_path OUT_DIR
    python test.py --gpu cpu --ckpt_path runs/digits      the checkpoint knows its data set, network and tail
    python test.py --images PATH... --ckpt_path OUT_DIR   afterwards: applies the network to any images

Prints the tables and writes results.json, results.csv, results.md, scores.png, roc.png and detector.pth into
the run directory.
"""

import argparse
import sys
from pathlib import Path

import torch

from datasets.loader import evaluation_batches
from datasets.long_tail import hold_out, long_tail_counts, long_tail_indices
from datasets.normalization import IMAGENET_NORMALIZATION, NORMALIZATIONS
from datasets.preprocessing import Preprocessing
from datasets.registry import BENCHMARKS
from datasets.scood import RESIZE_MODES
from models import FAMILIES, build_model
from utils import flags
from utils.conclusion import Sets, conclude
from utils.console import say, show_warnings_plainly
from utils.detector import Deployment
from utils.distributed import autocast, finish, in_main, start
from utils.errors import InputError, exit_cleanly
from utils.evaluation import extract_features, prepare_network
from utils.fitting import needs_outliers, trained_statistics
from utils.predictions import predict_files
from utils.run.checkpoint import open_checkpoint, results_folder
from utils.run.stored import (
    caveats,
    progress_of,
    require_class_counts,
    resolve_settings,
    stored_arguments,
    with_data_of_run,
)
from utils.run.weights import network_of, network_weights
from utils.scores import score_names
from utils.text_files import writable_folder


def main(argv=None):
    show_warnings_plainly()
    args = parse_args(argv)
    compute = start(args.gpu)
    if args.images:
        wanted = flags.one_calibration(args), args.score
        in_main(
            compute, lambda: predict_files(args.images, args.ckpt_path, args.srp, compute.device, *wanted)
        )
        return finish()
    checkpoint = open_checkpoint(args.ckpt_path)
    known, notes = identify(checkpoint, vars(args))
    benchmark, normalization = BENCHMARKS[known["ds"]], NORMALIZATIONS[known["normalization"]]
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))

    # Read everything first, so missing files are reported before any work is done.
    ood_sets = benchmark.load_ood(args.dout or benchmark.ood_sets, args.drp, args.ood_resize)
    test = benchmark.load_split(args.drp, False)
    training, held_out = benchmark.load_long_tailed(args.drp, known["rho"]), None
    if known["val_fraction"]:
        parts = hold_out(training.labels, known["val_fraction"])
        training, held_out = (training.select(part) if len(part) else None for part in parts)
    class_counts = torch.bincount(training.labels, minlength=benchmark.num_classes).tolist()
    require_class_counts(checkpoint, class_counts)
    names = flags.chosen_calibrations(args, held_out is not None)
    leaked = None
    if "fc" in names and args.calibration_split == "test":
        try:
            counts = long_tail_counts(int(torch.bincount(test.labels).max()), len(class_counts), known["rho"])
            leaked = test.select(long_tail_indices(test.labels, counts))
        except InputError:
            raise InputError(
                "--calibration_split test is impossible for this run: the test split has too few images for "
                f"its tail (rho {known['rho']})"
            ) from None
        notes.append("feature calibration used labelled TEST images, a leak; for auditing only")
    score = args.score or score_names()[0]
    outliers = None
    if needs_outliers(names, score):
        outliers = benchmark.load_outliers(args.drp, args.num_ood_samples)
    if compute.is_main:
        for note in notes:
            say(f"warning: {note}", sys.stderr)

    model = build_model(known["model"], len(class_counts))
    network = prepare_network(model, checkpoint, compute, args.precision)

    def features(title, images, labels, normalization=normalization):
        mine = slice(compute.rank, None, compute.world_size)
        batches = evaluation_batches(
            images[mine], labels[mine], batch_size=args.tb, normalization=normalization, device=compute.device
        )
        mixed_precision = autocast(compute.device, args.precision)
        return extract_features(network, batches, len(labels), compute, mixed_precision, title)

    of_training = features("training images", *training)
    of_outliers = None
    if outliers is not None:
        no_labels = torch.full((len(outliers),), -1)
        look = IMAGENET_NORMALIZATION if "normalization" in known["depart"] else normalization
        of_outliers = features("outliers", outliers, no_labels, look)
    sets = Sets(
        test=features("test images", *test),
        ood={name: features(name, *images) for name, images in ood_sets.items()},
        training=of_training,
        attending=of_training if leaked is None else features("calibration images", *leaked),
        outliers=of_outliers,
        held_out=None if held_out is None else features("held-out images", *held_out),
    )
    if compute.is_main:
        about = {"dataset": known["ds"], "network": known["model"], "checkpoint": str(args.ckpt_path)}
        about |= {"rho": known["rho"], "normalization": known["normalization"]}
        about |= {"ood_resize": args.ood_resize, "notes": notes}
        preprocessing = Preprocessing(test.images.shape[-1], args.ood_resize, normalization)
        statistics = trained_statistics(checkpoint, len(class_counts), of_training.features.shape[1])
        conclude(
            model,
            Deployment(known["model"], "cifar", preprocessing, benchmark.class_names(args.drp)),
            names,
            sets,
            class_counts,
            about,
            progress_of(checkpoint),
            out,
            calibration_split=args.calibration_split,
            score=score,
            strength=args.fc_strength,
            tnorm=args.tnorm,
            precision=args.precision,
            figures=args.figures,
            device=compute.device,
            statistics=statistics,
        )
    finish()


RANGES = {"rho": flags.imbalance_ratio, "val_fraction": flags.fraction}


def identify(checkpoint, given):
    """Identifies a checkpoint: from its own arguments, else the flags, else its weights and the paper's
    settings.

    Args:
        given: dict of flag name to value, None where the flag was not given.

    Returns:
        (settings, notes): dict of ds, model, rho, normalization, val_fraction, depart; sentences about the
        assumptions made.

    Raises:
        InputError: the checkpoint has no weights, or is not from train.py.
    """
    stored, weights = stored_arguments(checkpoint), network_weights(checkpoint)
    outputs = weights["linear.weight"].shape[:1] if "linear.weight" in weights else None
    likely_ds = next((ds for ds, b in BENCHMARKS.items() if (b.num_classes,) == outputs), "cifar10")
    named, assumed = resolve_settings(given, stored, {"ds": likely_ds}, {})
    if named["ds"] not in BENCHMARKS:
        advice = ": use test_imagenet.py" if named["ds"] == "imagenet" else ", which test.py does not know"
        raise InputError(f"the checkpoint was trained on {named['ds']}{advice}")
    usual = BENCHMARKS[named["ds"]].training
    family, likely_model = network_of(weights) or (None, None)
    defaults = {"model": likely_model if family == "cifar" else usual["model"], "val_fraction": 0}
    defaults |= {"rho": usual["rho"], "normalization": usual["normalization"], "depart": []}
    trained, assumed_too = resolve_settings(given, stored, defaults, RANGES)
    for name, choices in (("model", FAMILIES["cifar"]), ("normalization", NORMALIZATIONS)):
        if trained[name] not in choices:
            raise InputError(
                f"the checkpoint was trained with --{name} {trained[name]}, which test.py does not know"
            )
    known, assumed = named | trained, assumed + assumed_too
    return known, caveats(checkpoint, known, [n for n in assumed if n in ("ds", "rho", "normalization")])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    parser.add_argument(
        "--dataset",
        "--ds",
        dest="ds",
        type=flags.dataset_in_memory,
        choices=tuple(BENCHMARKS),
        help="default: the checkpoint's",
    )
    parser.add_argument("--model", "--md", choices=tuple(FAMILIES["cifar"]), help="default: the checkpoint's")
    parser.add_argument(
        "--imbalance_ratio", "--rho", dest="rho", type=flags.imbalance_ratio, help="default: the checkpoint's"
    )
    parser.add_argument(
        "--data_root_path",
        "--drp",
        dest="drp",
        type=flags.path,
        default=Path("data"),
        help="the data folder; default: the run's",
    )
    parser.add_argument(
        "--dout", nargs="+", metavar="SET", help="OOD sets, each with a list; default: the benchmark's"
    )
    parser.add_argument(
        "--ood_resize",
        choices=RESIZE_MODES,
        default=RESIZE_MODES[0],
        help="how to bring OOD images to 32 x 32: squash them, as published tables do, or resize the "
        "shorter side and crop the centre",
    )
    flags.add_evaluation_flags(parser)
    parser.add_argument(
        "--calibration_split",
        choices=("train", "test"),
        default="train",
        help="test: reproduces the test-label leak of the authors' release, for auditing only",
    )
    parser.add_argument(
        "--depart",
        nargs="+",
        choices=("normalization",),
        metavar="POINT",
        help="normalization: outliers are normalised with ImageNet's mean and std; default: as in "
        "the checkpoint's training",
    )
    parser.add_argument(
        "--num_ood_samples",
        type=flags.positive_int,
        default=300_000,
        help="how many outliers calibration uses: the first ones of the file",
    )
    return parser.parse_args(with_data_of_run(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_cleanly(main)
