"""The documents' pictures, from a run directory and from result files.

python -m benchmarks.figures run runs/demo --prefix digits   a 2-D map of features, the attention weight
python -m benchmarks.figures classes digits_default patt no_isac no_tla ce  accuracy by class, with and
without PATT's parts
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from sklearn.manifold import TSNE

from benchmarks.reproduce import RESULTS, ROOT
from benchmarks.rows import ROWS
from benchmarks.table import calibration_of, load_records
from datasets.loader import evaluation_batches
from datasets.registry import BENCHMARKS
from models import build_model
from utils import flags
from utils.calibration import Classifier, calibrate
from utils.distributed import Compute, autocast
from utils.errors import InputError, exit_cleanly
from utils.evaluation import extract_features
from utils.metrics import shot_groups
from utils.plots import plot_attention, plot_class_accuracy, plot_feature_map
from utils.run.checkpoint import load_run
from utils.run.runlog import writable_folder
from utils.run.weights import load_weights

POINTS_PER_KIND = 300  # of the 2-D map


def draw_run(run, drp, ood_set, prefix, out):
    """Draws the feature map and the attention of a run of train.py, and copies the pictures that test.py drew
    of it."""
    checkpoint = load_run(run)
    ds, compute = checkpoint["args"]["ds"], Compute(torch.device("cpu"))
    benchmark = BENCHMARKS[ds]
    model = build_model(checkpoint["args"]["model"], benchmark.num_classes)
    load_weights(model, checkpoint["model"])
    model.eval()

    def features(images, labels):
        batches = evaluation_batches(
            images, labels, batch_size=500, normalization=benchmark.normalization, device=compute.device
        )
        return extract_features(model, batches, len(labels), compute, autocast(compute.device, "fp32"))

    train = benchmark.load_long_tailed(drp, checkpoint["args"]["rho"])
    counts = torch.bincount(train.labels)
    outliers = benchmark.load_outliers(drp, 20_000)
    surrogate = features(outliers, torch.full((len(outliers),), -1)).features
    classifier, calibration = Classifier.of(model), features(*train)
    attention = calibrate(classifier, calibration, surrogate, counts)
    plot_attention(attention, out / f"{prefix}_attention.png")

    groups = {name: torch.from_numpy(members) for name, members in shot_groups(counts.tolist()).items()}
    test = features(*benchmark.load_split(drp, False))
    ood = features(*benchmark.load_ood([ood_set], drp)[ood_set])
    parts = {
        "head classes": test.features[groups["many"][test.labels]],
        "tail classes": test.features[groups["few"][test.labels]],
        f"OOD ({ood_set})": ood.features[ood.labels < 0],
    }
    generator = torch.Generator().manual_seed(0)
    parts = {
        name: f[torch.randperm(len(f), generator=generator)[:POINTS_PER_KIND]] for name, f in parts.items()
    }
    points = TSNE(random_state=0, init="pca").fit_transform(torch.cat(list(parts.values())).numpy())
    owner = np.repeat(np.arange(len(parts)), [len(f) for f in parts.values()])
    plot_feature_map(points, {name: owner == i for i, name in enumerate(parts)}, out / f"{prefix}_map.png")
    for name in ("scores.png", "roc.png"):
        if (Path(run) / name).exists():
            shutil.copyfile(Path(run) / name, out / f"{prefix}_{name}")


def draw_classes(results, group, rows, prefix, out):
    """Draws mean accuracies by class of some rows of a protocol, without FC, and of the first row with FC."""
    records = load_records(results, group)
    missing = [row for row in rows if row not in records]
    if missing:
        raise InputError(f"{group} has no row {missing[0]}; there are {', '.join(records)}")

    def mean_by_class(row, calibration):
        found = [
            a for r in records[row] for a in r["results"]["accuracy"] if calibration_of(a) == calibration
        ]
        return np.mean(np.array([a["per_class"] for a in found], float), axis=0)

    accuracies = {f"{ROWS[rows[0]].label}, with FC": mean_by_class(rows[0], "fc")}
    accuracies |= {ROWS[row].label: mean_by_class(row, "none") for row in rows}
    plot_class_accuracy(
        accuracies, records[rows[0]][0]["args"]["class_counts"], out / f"{prefix}_classes.png"
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("run", type=flags.path, help="a run directory of train.py, evaluated by test.py")
    run.add_argument("--drp", type=flags.path, help="the data folder")
    run.add_argument("--ood_set", default="digits89", help="the OOD set on the map")
    classes = kinds.add_parser("classes")
    classes.add_argument("group", help="a folder of --results")
    classes.add_argument("rows", nargs="+")
    classes.add_argument("--results", type=flags.path, default=RESULTS)
    for parser_of_kind in (run, classes):
        parser_of_kind.add_argument("--prefix", required=True, help="of the files' names")
        parser_of_kind.add_argument("--out", type=flags.path, default=ROOT / "docs" / "figures")
    args = parser.parse_args(argv)
    out = writable_folder(args.out)
    if args.kind == "run":
        draw_run(args.run, args.drp, args.ood_set, args.prefix, out)
    else:
        draw_classes(args.results, args.group, args.rows, args.prefix, out)


if __name__ == "__main__":
    exit_cleanly(main)
