"""The figures in the documents, from a run directory and from result files.

python -m benchmarks.figures run runs/demo/patt
    a 2-D map of features and the attention weights, after test.py --save_features --ckpt_path runs/demo/patt
python -m benchmarks.figures classes digits_default patt no_isac no_tla ce
    accuracy per class, with and without PATT's parts
python -m benchmarks.figures aurocs digits_default patt oe ce
    mean AUROC of every score, with the spread over seeds
python -m benchmarks.figures epochs cifar10_ResNet20_e100 ce patt
    AUROC and accuracy against the epoch, from evaluations of kept checkpoints (ROW-epochN-seedS.json)
"""

import argparse
import json
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE

from benchmarks.notes import epoch_of
from benchmarks.records import RESULTS, Way, load_records, metrics, way_of
from benchmarks.rows import label_of
from benchmarks.tabulate import Records
from utils import flags, plots
from utils.checkpoint import load_checkpoint
from utils.detector import find_detector
from utils.errors import InputError, exit_cleanly
from utils.metrics import shot_groups

POINTS_PER_KIND = 300  # of the 2-D map


def draw_run(run: Path, ood_set: str, out: str) -> None:
    counts = json.loads((run / "results.json").read_text(encoding="utf-8"))["class_counts"]
    try:
        test, ood = (np.load(run / "features" / f"{name}.npz") for name in ("test", ood_set))
    except FileNotFoundError as error:
        raise InputError(f"there is no {error.filename}; run test.py --save_features first") from None
    groups = shot_groups(counts)
    parts = [
        test["features"][groups["many"][test["labels"]]],
        test["features"][groups["few"][test["labels"]]],
        ood["features"][ood["labels"] < 0],
    ]
    shuffled = np.random.default_rng(0).permutation
    parts = [shuffled(part)[:POINTS_PER_KIND] for part in parts]
    points = TSNE(random_state=0, init="pca").fit_transform(np.concatenate(parts))
    owner = np.repeat(np.arange(3), [len(part) for part in parts])
    names = ("head classes", "tail classes", f"OOD ({ood_set})")
    plots.plot_feature_map(points, {name: owner == i for i, name in enumerate(names)}, f"{out}map.png")
    calibrations = load_checkpoint(find_detector(run))["calibrations"]
    if "fc" in calibrations:
        plots.plot_attention(calibrations["fc"]["calibration"]["attention"], f"{out}attention.png")


def draw_classes(rows: list[str], records: Records, path: str) -> None:
    """Draws mean accuracies per class, without FC, and for the first row also with FC."""

    def mean_by_class(row, calibration):
        found = [metrics(record, Way(calibration, ""))["per_class"] for record in records[row]]
        return np.mean(np.array(found, float), axis=0)

    accuracies = {f"{label_of(rows[0])}, with FC": mean_by_class(rows[0], "fc")}
    accuracies |= {label_of(row): mean_by_class(row, "none") for row in rows}
    plots.plot_class_accuracy(accuracies, records[rows[0]][0]["args"]["class_counts"], path)


def draw_aurocs(rows: list[str], records: Records, path: str) -> None:
    """Draws the mean AUROC of every score, and of the paper's score with FC."""
    every = map(way_of, records[rows[0]][0]["results"]["mean"])
    ways = {way.score: way for way in every if way.calibration == "none"}
    ways["energy, FC"] = Way("fc", "energy")
    aurocs = {}
    for row in rows:
        aurocs[label_of(row)] = {
            name: [metrics(record, way)["auroc"] for record in records[row]] for name, way in ways.items()
        }
    plots.plot_aurocs(aurocs, path)


def draw_epochs(rows: list[str], records: Records, path: str) -> None:
    """Draws AUROC and accuracy of the unchanged network against the epoch, mean and range over seeds."""
    shown = {"auroc": "AUROC, energy (%)", "all": "accuracy (%)"}
    with plots.figure(path, columns=2) as axes:
        for i, row in enumerate(rows):
            by_epoch = {}
            for record in chain(*(records[name] for name in records if name.partition("-epoch")[0] == row)):
                by_epoch.setdefault(epoch_of(record), []).append(metrics(record, Way("none", "energy")))
            if not by_epoch:
                raise InputError(f"no epoch of the row {row} was evaluated")
            epochs = sorted(by_epoch)
            for ax, metric in zip(axes, shown, strict=True):
                values = [[100 * of[metric] for of in by_epoch[epoch]] for epoch in epochs]
                middle = np.array([np.mean(seeds) for seeds in values])
                reach = [middle - [min(seeds) for seeds in values], [max(seeds) for seeds in values] - middle]
                look = {"marker": plots.MARKERS[i], "markersize": 4, "capsize": 2} | plots.style(i)
                ax.errorbar(epochs, middle, reach, label=label_of(row), **look)
        for ax, label in zip(axes, shown.values(), strict=True):
            ax.set(xlabel="epoch", ylabel=label)
        axes[1].legend(fontsize="small", loc="lower right")  # where accuracy leaves room


OF_RESULTS = {"classes": draw_classes, "aurocs": draw_aurocs, "epochs": draw_epochs}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("run", type=flags.path, help="a run directory of train.py, evaluated by test.py")
    run.add_argument("--ood_set", default="digits89", help="the OOD set on the map")
    for kind in OF_RESULTS:
        add = kinds.add_parser(kind).add_argument
        add("group", help="a folder of --results")
        add("rows", nargs="+", metavar="ROW")
        add("--results", type=flags.path, default=RESULTS)
    for kind in kinds.choices.values():
        kind.add_argument("--out", default="", help="the files' prefix, such as docs/figures/digits_")
    args = parser.parse_args(argv)
    if args.kind == "run":
        return draw_run(args.run, args.ood_set, args.out)
    records = load_records(args.results / args.group, () if args.kind == "epochs" else args.rows)
    OF_RESULTS[args.kind](args.rows, records, f"{args.out}{args.kind}.png")


if __name__ == "__main__":
    exit_cleanly(main)
