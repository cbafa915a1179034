"""Evaluates a checkpoint of train_imagenet.py on its ID and OOD test lists, with every score and calibration.

    python test_imagenet.py --gpu 0 --FC True --txtt LIST --txtv LIST --iidp DIR --iodp DIR --ckpt_path DIR
    python test_imagenet.py --ckpt_path DIR               the run knows its lists and folders
    python test_imagenet.py --images PATH... --ckpt_path DIR   afterwards: applies the network to any images

ID test, OOD test and calibration images get the same centre crop. Prints the tables and writes results.json,
results.csv, results.md, scores.png, roc.png and detector.pth into the run directory. Without a list of OOD
images it evaluates accuracy alone, and writes no results.csv and no plots.
"""

from pathlib import Path

import torch

from datasets.image_list import overlap
from datasets.imagenet import EvalImages, balanced_sample, folder_names, load_files, load_ood_lists
from datasets.images import NORMALIZATIONS, hold_out, kept_outliers
from datasets.loader import epoch_indices
from datasets.preprocessing import PHOTOGRAPH, Preprocessing
from models import FAMILIES, build_model
from utils import flags
from utils.checkpoint import caveats, require_classes, resolve_settings, stored_arguments
from utils.detector import Subject
from utils.distributed import autocast, finish, to_main
from utils.errors import InputError, exit_cleanly
from utils.evaluation import Features, extract_features, prepare_network
from utils.evaluation_script import choose_settings, data_of_run, evaluation_parser, parse, run_script, warn
from utils.fitting import TrainingSets
from utils.results import Sets, conclude
from utils.weights import network_of, network_weights


def main(argv=None):
    run_script(parse_args(argv), identify, evaluate)


def evaluate(args, compute, checkpoint, known, notes, out):
    """Evaluates the network of a checkpoint, which ``known`` describes, and writes the results to ``out``."""
    stored = stored_arguments(checkpoint)
    data = data_of_run(args, stored, flags.IMAGE_LISTS)
    iidp, iodp = data["iidp"], data["iodp"]

    def load_outliers():
        if not args.txt_ood_train and stored.get("oe") is False and not data["txt_ood_train"].exists():
            raise InputError("no outliers: the run was trained without, and --txt_ood_train names none")
        return load_files(data["txt_ood_train"], iodp, labelled=False)

    # Read every list first, so missing files are reported before any work is done.
    every = load_files(data["txtt"], iidp)
    class_names = folder_names(every)
    training, held_out = hold_out(every, known["val_fraction"])
    class_counts = torch.bincount(training.labels).tolist()
    require_classes(checkpoint, class_counts, class_names)
    test = load_files(data["txtv"], iidp, num_classes=len(class_counts))
    require_same_classes(test, class_names or [], data["txtv"])
    ood = {}
    if args.txt_ood_test or any(path.exists() for path in data["txt_ood_test"]):
        ood = load_ood_lists(data["txt_ood_test"], iodp)
    else:
        notes.append("no list of OOD images (--txt_ood_test), so accuracy alone")
    settings, outliers, more = choose_settings(args, held_out is not None, load_outliers)
    notes += more + overlaps(test, every, ood, outliers)
    held_outliers = None
    if outliers is not None:
        number, trained_on = len(outliers.paths), checkpoint.get("num_outliers") or 0
        kept = kept_outliers(number, known["val_fraction"], trained_on)
        chosen = epoch_indices(kept, min(args.num_cal, kept), args.seed, 0, "calibration")
        if kept < number:
            held_outliers = outliers.select(slice(kept, kept + args.num_cal))
        outliers = outliers.select(chosen)
    calibrations = set(settings.calibrations)
    if "auto" in calibrations and held_outliers is None:
        raise InputError("--calibration auto needs outliers after those trained on: a longer --txt_ood_train")
    if {"auto", "fc"} & calibrations and args.num_cal < len(class_counts):
        raise InputError(
            f"--num_cal {args.num_cal} is fewer than the {len(class_counts)} classes: each needs one"
        )
    warn(compute, notes)

    model = build_model(known["model"], len(class_counts), family="imagenet")
    network = prepare_network(model, checkpoint, compute, args.precision)
    mixed_precision = autocast(compute.device, args.precision)
    normalization = NORMALIZATIONS[known["normalization"]]

    def features(title, files, replace=True):
        if files is None:
            return None
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
        found = extract_features(network, batches, len(files.paths), compute, mixed_precision, title)
        for lines in to_main(batches.replaced.report()):
            notes.extend(f"{title}: {line}".replace(f"{files.root}/", "") for line in lines)
        return found

    # First the sets in which a file that cannot be read is an error.
    of_test = features("test images", test, replace=False)
    of_ood = {name: features(name, files, replace=False) for name, files in ood.items()}
    of_training, of_outliers = features("training images", training), features("outliers", outliers)
    sample = balanced_sample(training.labels, args.num_cal, args.seed)
    fitting = TrainingSets(
        training=of_training,
        outliers=of_outliers,
        held_out=features("held-out images", held_out),
        held_outliers=features("held-out outliers", held_outliers),
        attending=Features(*(part[sample] for part in of_training)) if compute.is_main else None,
        attending_outliers=of_outliers,
    )
    finish()  # fitting, in the main process, can take longer than the others may wait
    if compute.is_main:
        about = {"dataset": "imagenet", "data": name_of(data["txtt"]), "network": known["model"]}
        about |= {"checkpoint": str(args.ckpt_path), "normalization": known["normalization"]}
        about |= {"calibration_seed": args.seed, "flags": args.asked, "notes": notes}
        look = Preprocessing(known["image_size"], PHOTOGRAPH), normalization
        subject = Subject(model, known["model"], "imagenet", *look, class_counts, class_names, checkpoint)
        conclude(subject, Sets(of_test, of_ood, fitting), settings, about, out, compute.device)


def require_same_classes(files, class_names, list_path):
    """Raises InputError if an image of a list lies in a folder that is named after another class."""
    numbers = {name: c for c, name in enumerate(class_names)}
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        expected = [numbers[folder] for folder in Path(path).parent.parts if folder in numbers]
        if expected and label not in expected:
            raise InputError(f"{list_path}: {path} has label {label}, but in the training list {expected[0]}")


def overlaps(test, training, ood, outliers):
    """Returns notes about files that are in two lists that should have none in common."""
    pairs = [("the test list", test, training, "training images")]
    if outliers is not None:
        pairs += [(f"the OOD list {name}", files, outliers, "outliers") for name, files in ood.items()]
    counts = [(name, overlap(files, others), len(files.paths), what) for name, files, others, what in pairs]
    return [f"{n:,} of {size:,} images of {name} are {what} too" for name, n, size, what in counts if n]


def name_of(training_list):
    """Returns a name for the user's data: the training list's, or its folder's if that is just "train"."""
    name = training_list.stem.removesuffix("_train")
    return training_list.resolve().parent.name if name in ("train", "training") else name


def identify(checkpoint, given):
    """Returns a checkpoint's settings, and sentences about what was assumed; see test.py."""
    family, likely_model = network_of(network_weights(checkpoint)) or (None, None)
    defaults = {"ds": "imagenet", "model": likely_model if family == "imagenet" else "ResNet50"}
    defaults |= {"image_size": 224, "normalization": "imagenet", "val_fraction": 0}
    known, assumed = resolve_settings(given, stored_arguments(checkpoint), defaults)
    if known["ds"] != "imagenet" or known["model"] not in FAMILIES["imagenet"]:
        raise InputError(f"the checkpoint is of a {known['model']} trained on {known['ds']}: use test.py")
    return known, caveats(checkpoint, known, [n for n in assumed if n in ("image_size", "normalization")])


def parse_args(argv=None):
    parser = evaluation_parser(__doc__)
    add = parser.add_argument
    add("--dataset", "--ds", dest="ds", choices=("imagenet",), help="the data set")
    add("--model", "--md", choices=tuple(FAMILIES["imagenet"]), help="default: the checkpoint's")
    flags.add_image_lists(parser)
    parser.set_defaults(**dict.fromkeys(flags.IMAGE_LISTS))  # the run's
    add("--image_size", type=flags.image_size, help="default: the checkpoint's")
    number = "how many training images (class-balanced) and outliers calibration uses"
    add("--num_cal", type=flags.positive_int, default=30_000, help=number)
    parser.set_defaults(tb=100)
    return parse(parser, argv)


if __name__ == "__main__":
    exit_cleanly(main)
