"""Evaluates a checkpoint of train_imagenet.py on its ID and OOD test lists, with every score and calibration.

    python test_imagenet.py --gpu 0 --FC True --txtt LIST --txtv LIST --iidp DIR --iodp DIR --ckpt_path DIR

ID test, OOD test and calibration images get the same centre crop. Prints the table and writes
results.json, results.csv, results.md, scores.png, roc.png and detector.pth into the run
directory. Afterwards,

    python test_imagenet.py --images PATH... --ckpt_path DIR

applies the network to any images.
"""

import argparse
import sys

import torch

from datasets.imagenet import (
    EvalImages,
    balanced_sample,
    folder_names,
    load_files,
    load_ood_lists,
    select,
)
from datasets.long_tail import hold_out
from datasets.normalization import NORMALIZATIONS
from datasets.preprocessing import PHOTOGRAPH, Preprocessing
from datasets.randomness import epoch_indices
from datasets.workers import naming_files_of_dead_workers
from models import FAMILIES, build_model
from utils import flags
from utils.calibration import CALIBRATIONS, Classifier
from utils.detector import write_detector
from utils.distributed import autocast, finish, in_main, resolved_precision, start
from utils.errors import InputError, exit_cleanly
from utils.evaluation import Features, evaluate, extract_features, prepare_network
from utils.fitting import fit_calibrations
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

RANGES = {"image_size": flags.image_size, "val_fraction": flags.fraction}


@naming_files_of_dead_workers()
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
    checkpoint = open_checkpoint(args.ckpt_path)
    known, notes = identify(checkpoint, vars(args))
    normalization = NORMALIZATIONS[known["normalization"]]
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))
    if compute.is_main:
        for note in notes:
            say(f"warning: {note}", sys.stderr)

    # Read every list first, so missing files are reported before any work is done.
    training = load_files(args.txtt, args.iidp)
    class_names, held_out = folder_names(training), None
    if known["val_fraction"]:
        parts = hold_out(training.labels, known["val_fraction"])
        training, held_out = (select(training, part) if len(part) else None for part in parts)
    class_counts = torch.bincount(training.labels).tolist()
    require_class_counts(checkpoint, class_counts)
    test = load_files(args.txtv, args.iidp, num_classes=len(class_counts))
    ood = load_ood_lists(args.txt_ood_test, args.iodp)
    names = flags.chosen_calibrations(args, held_out is not None)
    needs_outliers = set(names) != {"none"}
    outliers = load_files(args.txt_ood_train, args.iodp, labelled=False) if needs_outliers else None
    if args.num_cal < len(class_counts):
        raise InputError(
            f"--num_cal {args.num_cal} is less than one image for each of the {len(class_counts)} classes"
        )

    model = build_model(known["model"], len(class_counts), family="imagenet")
    network = prepare_network(model, checkpoint, compute, args.precision)
    mixed_precision = autocast(compute.device, args.precision)

    def features(title, files):
        batches = EvalImages(
            files,
            image_size=known["image_size"],
            normalization=normalization,
            batch_size=args.tb,
            num_workers=args.num_workers,
            device=compute.device,
            rank=compute.rank,
            world_size=compute.world_size,
        )
        return extract_features(network, batches, len(files.paths), compute, mixed_precision, title)

    test_features = features("test images", test)
    ood_features = {name: features(name, files) for name, files in ood.items()}
    training = features("training images", training)
    sample = balanced_sample(training.labels, args.num_cal, args.seed)
    attending = Features(training.features[sample], training.labels[sample])
    surrogate = None
    if needs_outliers:
        size = min(args.num_cal, len(outliers.paths))
        chosen = select(outliers, epoch_indices(len(outliers.paths), size, args.seed, 0, "calibration"))
        surrogate = features("outliers", chosen).features
    held_out = None if held_out is None else features("held-out images", held_out)

    if compute.is_main:
        classifier = Classifier.of(model, args.tnorm)
        calibrations, facts = fit_calibrations(
            names,
            classifier,
            training,
            surrogate,
            class_counts,
            strength=args.fc_strength,
            attending=attending,
            held_out=held_out,
            score=score,
        )
        results, scores = evaluate(calibrations, test_features, ood_features, class_counts)
        about = {"dataset": "imagenet", "checkpoint": str(args.ckpt_path), "class_counts": class_counts}
        about |= {"calibration_split": "train" if "fc" in calibrations else None} | facts
        about |= {"network": known["model"], "normalization": known["normalization"], "notes": notes}
        about |= progress_of(checkpoint) | {"tnorm": args.tnorm, "score": score}
        report(
            about | results | {"environment": environment(compute.device)},
            scores,
            score,
            out,
            args.figures,
        )
        write_detector(
            out,
            model,
            calibrations,
            held_out,
            training,
            auto=facts.get("auto"),
            name=known["model"],
            family="imagenet",
            preprocessing=Preprocessing(known["image_size"], PHOTOGRAPH, normalization),
            precision=resolved_precision(compute.device, args.precision),
            class_names=class_names,
        )
    finish()


def identify(checkpoint, given):
    """Identifies a checkpoint: from its own arguments, else the flags, else its weights and the paper's
    settings.

    Args:
        given: dict of flag name to value, None where the flag was not given.

    Returns:
        (settings, notes): dict of ds, model, image_size, normalization, val_fraction; sentences about the
        assumptions made.

    Raises:
        InputError: the checkpoint has no weights, or is not from train_imagenet.py.
    """
    family, likely_model = network_of(network_weights(checkpoint)) or (None, None)
    defaults = {"ds": "imagenet", "model": likely_model if family == "imagenet" else "ResNet50"}
    defaults |= {"image_size": 224, "normalization": "imagenet", "val_fraction": 0}
    known, assumed = resolve_settings(given, stored_arguments(checkpoint), defaults, RANGES)
    if known["ds"] != "imagenet" or known["model"] not in FAMILIES["imagenet"]:
        raise InputError(
            f"the checkpoint holds a {known['model']} trained on {known['ds']}, which is for test.py"
        )
    if known["normalization"] not in NORMALIZATIONS:
        raise InputError(f"the checkpoint's --normalization {known['normalization']} is unknown")
    assumed = [name for name in assumed if name in ("image_size", "normalization")]
    return known, caveats(checkpoint, known, assumed)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    parser.add_argument(
        "--ckpt_path", type=flags.path, required=True, help="a run directory or a checkpoint file"
    )
    parser.add_argument("--dataset", "--ds", dest="ds", choices=("imagenet",), help="the data set")
    parser.add_argument(
        "--model", "--md", choices=tuple(FAMILIES["imagenet"]), help="default: the checkpoint's"
    )
    flags.add_image_lists(parser)
    parser.add_argument("--image_size", type=flags.image_size, help="default: the checkpoint's")
    parser.add_argument(
        "--normalization",
        choices=tuple(NORMALIZATIONS),
        help="the mean and std used to normalise images, as in training; default: the checkpoint's, "
        "else imagenet",
    )
    parser.add_argument(
        "--num_cal",
        type=flags.positive_int,
        default=30_000,
        help="how many training images (class-balanced) feature calibration uses, and how many outliers it "
        "and the probe use",
    )
    flags.add_evaluation_flags(parser, CALIBRATIONS, SCORE_NAMES)
    parser.set_defaults(tb=100)
    return parser.parse_args(with_data_of_run(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_cleanly(main)
