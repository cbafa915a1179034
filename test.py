"""Evaluates a checkpoint of train.py, or a third-party one, on its test set and OOD sets, with and without
calibration.

    python test.py --gpu 0 --ds cifar10 --FC True --drp DATA --ckpt_path OUT_DIR
    python test.py --gpu cpu --ckpt_path runs/digits      the checkpoint knows its data set, network and tail
    python test.py --images PATH... --ckpt_path OUT_DIR   afterwards: applies the network to any images

Prints the tables and writes results.json, results.csv, results.md, scores.png, roc.png and detector.pth into
the run directory.
"""

from pathlib import Path

import torch

from datasets.images import (
    IMAGENET_NORMALIZATION,
    NORMALIZATIONS,
    ImageSet,
    hold_out,
    kept_outliers,
    long_tail_counts,
    long_tail_indices,
)
from datasets.loader import evaluation_batches
from datasets.preprocessing import RESIZE_MODES, Preprocessing
from datasets.registry import BENCHMARKS
from models import FAMILIES, build_model
from utils import flags
from utils.checkpoint import caveats, require_classes, resolve_settings, stored_arguments
from utils.detector import Subject
from utils.distributed import autocast, finish
from utils.errors import InputError, exit_cleanly
from utils.evaluation import extract_features, prepare_network
from utils.evaluation_script import choose_settings, data_of_run, evaluation_parser, parse, run_script, warn
from utils.fitting import TrainingSets
from utils.results import Sets, conclude
from utils.weights import network_of, network_weights


def main(argv=None):
    run_script(parse_args(argv), identify, evaluate)


def evaluate(args, compute, checkpoint, known, notes, out):
    """Evaluates the network of a checkpoint, which ``known`` describes, and writes the results to ``out``."""
    benchmark, normalization = BENCHMARKS[known["ds"]], NORMALIZATIONS[known["normalization"]]
    drp = data_of_run(args, stored_arguments(checkpoint), {"drp": Path("data")})["drp"]

    # Read everything first, so missing files are reported before any work is done.
    names = benchmark.ood_sets if args.dout is None else args.dout
    ood_sets = benchmark.load_ood(names, drp, args.ood_resize)
    if not names:
        notes.append("no OOD set (--dout), so accuracy alone")
    test = benchmark.load_split(drp, False)
    training, held_out = hold_out(benchmark.load_long_tailed(drp, known["rho"]), known["val_fraction"])
    class_counts = torch.bincount(training.labels, minlength=benchmark.num_classes).tolist()
    class_names = benchmark.class_names(drp)
    require_classes(checkpoint, class_counts, class_names)
    settings, outliers, more = choose_settings(
        args, held_out is not None, lambda: benchmark.load_outliers(drp, args.num_ood_samples)
    )
    notes += more
    leaked = None
    if settings.calibration_split == "test":  # the images that the authors' release calibrates on
        counts = long_tail_counts(int(torch.bincount(test.labels).max()), len(class_counts), known["rho"])
        leaked = test.select(long_tail_indices(test.labels, counts))
        notes.append("feature calibration used labelled TEST images, a leak; for auditing only")
    warn(compute, notes)

    model = build_model(known["model"], len(class_counts))
    network = prepare_network(model, checkpoint, compute, args.precision)
    mixed_precision = autocast(compute.device, args.precision)

    def features(title, images, normalization=normalization):
        if images is None:
            return None
        pixels, labels = (part[compute.rank :: compute.world_size] for part in images)
        batches = evaluation_batches(
            pixels, labels, batch_size=args.tb, normalization=normalization, device=compute.device
        )
        return extract_features(network, batches, len(images.labels), compute, mixed_precision, title)

    held_outliers = None
    if outliers is not None:
        outliers = ImageSet(outliers, torch.full((len(outliers),), -1))
        number, trained_on = len(outliers.labels), checkpoint.get("num_outliers") or 0
        kept = kept_outliers(number, known["val_fraction"], trained_on)
        if kept < number:
            held_outliers = outliers.select(slice(kept, None))
        outliers = outliers.select(slice(kept))
    if "auto" in settings.calibrations and held_outliers is None:
        raise InputError("--calibration auto needs outliers after those trained on: raise --num_ood_samples")
    of_training, of_outliers = features("training images", training), features("outliers", outliers)
    of_released = None  # outliers as the release's attention sees them
    if "normalization" in known["depart"]:
        of_released = features("outliers", outliers, IMAGENET_NORMALIZATION)
    fitting = TrainingSets(
        training=of_training,
        outliers=of_outliers,
        held_out=features("held-out images", held_out),
        held_outliers=features("held-out outliers", held_outliers),
        attending=features("calibration images", leaked) or of_training,
        attending_outliers=of_released or of_outliers,
    )
    of_ood = {name: features(name, images) for name, images in ood_sets.items()}
    sets = Sets(features("test images", test), of_ood, fitting)
    finish()  # fitting, in the main process, can take longer than the others may wait
    if compute.is_main:
        about = {"dataset": known["ds"], "network": known["model"], "checkpoint": str(args.ckpt_path)}
        about |= {"rho": known["rho"], "normalization": known["normalization"], "ood_resize": args.ood_resize}
        about |= {"flags": args.asked, "notes": notes}
        look = Preprocessing(test.images.shape[-1], args.ood_resize), normalization
        subject = Subject(model, known["model"], "cifar", *look, class_counts, class_names, checkpoint)
        conclude(subject, sets, settings, about, out, compute.device)


def identify(checkpoint, given):
    """Returns the settings of a checkpoint of train.py, from its own arguments, else the flags ``given``,
    else its weights and the paper's settings; and sentences about what was assumed."""
    stored, weights = stored_arguments(checkpoint), network_weights(checkpoint)
    outputs = weights["linear.weight"].shape[:1] if "linear.weight" in weights else None
    likely_ds = next((ds for ds, b in BENCHMARKS.items() if (b.num_classes,) == outputs), "cifar10")
    named, assumed = resolve_settings(given, stored, {"ds": likely_ds})
    if named["ds"] not in BENCHMARKS:
        raise InputError(f"the checkpoint was trained on {named['ds']}: use test_imagenet.py")
    usual = BENCHMARKS[named["ds"]].training
    family, likely_model = network_of(weights) or (None, None)
    defaults = {"model": likely_model if family == "cifar" else usual["model"], "val_fraction": 0}
    defaults |= {"rho": usual["rho"], "normalization": usual["normalization"], "depart": []}
    trained, assumed_too = resolve_settings(given, stored, defaults)
    if trained["model"] not in FAMILIES["cifar"]:
        raise InputError(f"test.py does not know the checkpoint's network, {trained['model']}")
    known, assumed = named | trained, assumed + assumed_too
    return known, caveats(checkpoint, known, [n for n in assumed if n in ("ds", "rho", "normalization")])


def parse_args(argv=None):
    parser = evaluation_parser(__doc__)
    add = parser.add_argument
    of_run = "default: the checkpoint's"
    add("--dataset", "--ds", dest="ds", choices=tuple(BENCHMARKS), help=of_run)
    add("--model", "--md", choices=tuple(FAMILIES["cifar"]), help=of_run)
    add("--imbalance_ratio", "--rho", dest="rho", type=flags.imbalance_ratio, help=of_run)
    data = "the data folder; default: the run's, else data"
    add("--data_root_path", "--drp", dest="drp", type=flags.path, help=data)
    ood = "OOD sets, each with a list; default: the benchmark's; without a name: accuracy alone"
    add("--dout", nargs="*", metavar="SET", help=ood)
    resize = "squash OOD images to 32 x 32, as published tables do, or resize the shorter side and crop"
    add("--ood_resize", choices=RESIZE_MODES, default=RESIZE_MODES[0], help=resize)
    leak = "test: reproduces the test-label leak of the authors' release, for auditing only"
    add("--calibration_split", choices=("train", "test"), default="train", help=leak)
    points = "normalization: outliers are normalised with ImageNet's mean and std; default: as in training"
    add("--depart", nargs="+", choices=("normalization",), metavar="POINT", help=points)
    number = "how many outliers calibration uses: the first ones of the file"
    add("--num_ood_samples", type=flags.positive_int, default=300_000, help=number)
    return parse(parser, argv)


if __name__ == "__main__":
    exit_cleanly(main)
