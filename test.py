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

from datasets import ImageSet
from datasets.loader import evaluation_batches
from datasets.long_tail import hold_out, long_tail_counts, long_tail_indices
from datasets.normalization import IMAGENET_NORMALIZATION, NORMALIZATIONS
from datasets.preprocessing import Preprocessing
from datasets.registry import BENCHMARKS
from datasets.scood import RESIZE_MODES
from models import FAMILIES, build_model
from utils import flags
from utils.calibration import CALIBRATIONS, Classifier
from utils.detector import write_detector
from utils.distributed import autocast, finish, in_main, resolved_precision, start
from utils.errors import InputError, exit_cleanly
from utils.evaluation import evaluate, extract_features, prepare_network
from utils.fitting import fit_calibrations, trained_statistics
from utils.predictions import predict_files
from utils.report import report
from utils.run.checkpoint import (
    caveats,
    open_checkpoint,
    progress_of,
    require_class_counts,
    resolve_settings,
    results_folder,
    stored_arguments,
)
from utils.run.run import with_data_of_run
from utils.run.runlog import environment, say, show_warnings_plainly, writable_folder
from utils.run.weights import network_of, network_weights
from utils.scores import SCORE_NAMES


def main(argv=None):
    args = parse_args(argv)
    show_warnings_plainly()
    compute = start(args.gpu)
    if args.images:
        wanted = flags.one_calibration(args), args.score
        in_main(
            compute, lambda: predict_files(args.images, args.ckpt_path, args.srp, compute.device, *wanted)
        )
        return finish()
    score = args.score or SCORE_NAMES[0]
    torch.manual_seed(args.seed)
    checkpoint = open_checkpoint(args.ckpt_path)
    known, notes = identify(checkpoint, vars(args))
    benchmark, normalization = BENCHMARKS[known["ds"]], NORMALIZATIONS[known["normalization"]]
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))

    # Read everything first, so missing files are reported before any work is done.
    ood_sets = benchmark.load_ood(args.dout or benchmark.ood_sets, args.drp, args.ood_resize)
    test = benchmark.load_split(args.drp, False)
    train = benchmark.load_long_tailed(args.drp, known["rho"])
    held_out = None
    if known["val_fraction"]:
        parts = hold_out(train.labels, known["val_fraction"])
        train, held_out = (
            ImageSet(train.images[part], train.labels[part]) if len(part) else None for part in parts
        )
    class_counts = torch.bincount(train.labels, minlength=benchmark.num_classes)
    require_class_counts(checkpoint, class_counts.tolist())
    calibration = train
    if args.calibration_split == "test":
        counts = long_tail_counts(int(torch.bincount(test.labels).max()), benchmark.num_classes, known["rho"])
        chosen = long_tail_indices(test.labels, counts)
        calibration = test._replace(images=test.images[chosen], labels=test.labels[chosen])
    names = flags.chosen_calibrations(args, held_out is not None)
    leaks = "fc" in names and args.calibration_split == "test"
    if leaks:
        notes.append("feature calibration used labelled TEST images, a leak; for auditing only")
    if compute.is_main:
        for note in notes:
            say(f"warning: {note}", sys.stderr)
    needs_outliers = set(names) != {"none"}
    outliers = benchmark.load_outliers(args.drp, args.num_ood_samples) if needs_outliers else None

    model = build_model(known["model"], benchmark.num_classes)
    network = prepare_network(model, checkpoint, compute, args.precision)
    mixed_precision = autocast(compute.device, args.precision)

    def features(title, images, labels, normalization=normalization):
        mine = slice(compute.rank, None, compute.world_size)
        batches = evaluation_batches(
            images[mine], labels[mine], batch_size=args.tb, normalization=normalization, device=compute.device
        )
        return extract_features(network, batches, len(labels), compute, mixed_precision, title)

    test_features, training = features("test images", *test), features("training images", *train)
    ood_features = {name: features(name, *images) for name, images in ood_sets.items()}
    surrogate, attending = None, training
    if needs_outliers:
        outlier_normalization = (
            IMAGENET_NORMALIZATION if "normalization" in known["depart"] else normalization
        )
        surrogate = features(
            "outliers", outliers, torch.full((len(outliers),), -1), outlier_normalization
        ).features
    if leaks:
        attending = features("calibration images", *calibration)
    held_out = None if held_out is None else features("held-out images", *held_out)

    if compute.is_main:
        classifier = Classifier.of(model, args.tnorm)
        statistics = trained_statistics(checkpoint, len(class_counts), training.features.shape[1])
        calibrations, facts = fit_calibrations(
            names,
            classifier,
            training,
            surrogate,
            class_counts,
            strength=args.fc_strength,
            attending=attending,
            statistics=statistics,
            held_out=held_out,
            score=score,
        )
        results, scores = evaluate(calibrations, test_features, ood_features, class_counts.tolist())
        about = {"dataset": known["ds"], "network": known["model"], "checkpoint": str(args.ckpt_path)}
        about["class_counts"] = class_counts.tolist()
        about |= {"calibration_split": args.calibration_split if "fc" in calibrations else None} | facts
        about |= {"tnorm": args.tnorm, "ood_resize": args.ood_resize, "score": score, "notes": notes}
        about |= progress_of(checkpoint) | {name: known[name] for name in ("rho", "normalization")}
        report(
            about | results | {"environment": environment(compute.device)},
            scores,
            score,
            out,
            args.figures,
        )
        if args.calibration_split == "train":
            write_detector(
                out,
                model,
                calibrations,
                held_out,
                training,
                auto=facts.get("auto"),
                name=known["model"],
                family="cifar",
                preprocessing=Preprocessing(test.images.shape[-1], args.ood_resize, normalization),
                precision=resolved_precision(compute.device, args.precision),
                class_names=benchmark.class_names(args.drp),
            )
        else:
            print("no detector is written when test images were used for calibration")
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
        raise InputError(f"the checkpoint was trained on {named['ds']}, which test.py does not know")
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
        "--ckpt_path", type=flags.path, required=True, help="a run directory or a checkpoint file"
    )
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
        "--normalization",
        choices=tuple(NORMALIZATIONS),
        help="the mean and std used to normalise images, as in training (PASCL's networks: none); "
        "default: the checkpoint's, else the data set's",
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
    flags.add_evaluation_flags(parser, CALIBRATIONS, SCORE_NAMES)
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
