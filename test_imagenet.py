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
from utils.conclusion import Sets, conclude
from utils.console import say, show_warnings_plainly
from utils.detector import Deployment
from utils.distributed import autocast, finish, in_main, start, to_main
from utils.errors import InputError, exit_cleanly
from utils.evaluation import Features, extract_features, prepare_network
from utils.fitting import needs_outliers
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

RANGES = {"image_size": flags.image_size, "val_fraction": flags.fraction}


@naming_files_of_dead_workers()
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
    normalization = NORMALIZATIONS[known["normalization"]]
    out = args.srp or results_folder(args.ckpt_path)
    in_main(compute, lambda: writable_folder(out))
    if compute.is_main:
        for note in notes:
            say(f"warning: {note}", sys.stderr)

    # Read every list first, so missing files are reported before any work is done.
    training, held_out = load_files(args.txtt, args.iidp), None
    class_names = folder_names(training)
    if known["val_fraction"]:
        parts = hold_out(training.labels, known["val_fraction"])
        training, held_out = (select(training, part) if len(part) else None for part in parts)
    class_counts = torch.bincount(training.labels).tolist()
    require_class_counts(checkpoint, class_counts)
    test = load_files(args.txtv, args.iidp, num_classes=len(class_counts))
    ood = load_ood_lists(args.txt_ood_test, args.iodp)
    names = flags.chosen_calibrations(args, held_out is not None)
    outliers = None
    score = args.score or score_names()[0]
    if needs_outliers(names, score):
        outliers = load_files(args.txt_ood_train, args.iodp, labelled=False)
        size = min(args.num_cal, len(outliers.paths))
        chosen = epoch_indices(len(outliers.paths), size, args.seed, 0, "calibration")
        outliers = select(outliers, chosen)
    if args.num_cal < len(class_counts):
        raise InputError(
            f"--num_cal {args.num_cal} is less than one image for each of the {len(class_counts)} classes"
        )

    model = build_model(known["model"], len(class_counts), family="imagenet")
    network = prepare_network(model, checkpoint, compute, args.precision)

    def features(title, files, replace=True):
        batches = EvalImages(
            files,
            image_size=known["image_size"],
            normalization=normalization,
            batch_size=args.tb,
            num_workers=args.num_workers,
            device=compute.device,
            replace=replace,
            rank=compute.rank,
            world_size=compute.world_size,
        )
        mixed_precision = autocast(compute.device, args.precision)
        found = extract_features(network, batches, len(files.paths), compute, mixed_precision, title)
        for lines in to_main(batches.replaced.report()):
            notes.extend(f"{title}: {line}".replace(f"{files.root}/", "") for line in lines)
        return found

    # First the sets in which a file that cannot be read is an error.
    of_test = features("test images", test, replace=False)
    of_ood = {name: features(name, files, replace=False) for name, files in ood.items()}
    of_training = features("training images", training)
    sample = balanced_sample(training.labels, args.num_cal, args.seed)
    sets = Sets(
        test=of_test,
        ood=of_ood,
        training=of_training,
        attending=Features(*(part[sample] for part in of_training)) if compute.is_main else None,
        outliers=None if outliers is None else features("outliers", outliers),
        held_out=None if held_out is None else features("held-out images", held_out),
    )
    if compute.is_main:
        about = {"dataset": "imagenet", "network": known["model"], "checkpoint": str(args.ckpt_path)}
        about |= {"normalization": known["normalization"]}
        about |= {"calibration_seed": args.seed, "notes": notes}
        preprocessing = Preprocessing(known["image_size"], PHOTOGRAPH, normalization)
        conclude(
            model,
            Deployment(known["model"], "imagenet", preprocessing, class_names),
            names,
            sets,
            class_counts,
            about,
            progress_of(checkpoint),
            out,
            calibration_split="train",
            score=score,
            strength=args.fc_strength,
            tnorm=args.tnorm,
            precision=args.precision,
            figures=args.figures,
            device=compute.device,
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
    parser.add_argument("--dataset", "--ds", dest="ds", choices=("imagenet",), help="the data set")
    parser.add_argument(
        "--model", "--md", choices=tuple(FAMILIES["imagenet"]), help="default: the checkpoint's"
    )
    flags.add_image_lists(parser)
    parser.add_argument("--image_size", type=flags.image_size, help="default: the checkpoint's")
    parser.add_argument(
        "--num_cal",
        type=flags.positive_int,
        default=30_000,
        help="how many training images (class-balanced) feature calibration uses, and how many outliers it "
        "and the probe use",
    )
    flags.add_evaluation_flags(parser)
    parser.set_defaults(tb=100)
    return parser.parse_args(with_data_of_run(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_cleanly(main)
