"""The figures in the documents, from a run directory and from result files.

Those in the documents were drawn with ``--prefix digits`` or ``cifar10``, and ``run`` with ``--out
docs/figures``.

python -m benchmarks.figures run runs/demo/patt
    a 2-D map of features and the attention weights
python -m benchmarks.figures classes digits_default patt no_isac no_tla ce
    accuracy per class, with and without PATT's parts
python -m benchmarks.figures aurocs digits_default patt oe ce
    mean AUROC of every score, with the spread over seeds
python -m benchmarks.figures strengths digits_default patt
    AUROC and accuracy against the strength of feature calibration
python -m benchmarks.figures epochs cifar10_ResNet20_e100_fp32 ce patt
    AUROC and accuracy against the epoch, from evaluations of kept checkpoints (ROW-epochN-seedS.json)
"""

import argparse
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.manifold import TSNE

from benchmarks.notes import epochs
from benchmarks.records import RESULTS, ROOT, Way, load_records, metrics, way_of
from benchmarks.rows import EVALUATED, ROWS
from datasets.loader import evaluation_batches
from datasets.normalization import NORMALIZATIONS
from datasets.registry import BENCHMARKS
from models import build_model
from utils import flags
from utils.checkpoint import load_checkpoint, load_run
from utils.detector import find_detector
from utils.distributed import Compute, autocast
from utils.errors import InputError, exit_cleanly
from utils.evaluation import extract_features
from utils.metrics import shot_groups
from utils.plots import (
    MARKERS,
    figure,
    plot_attention,
    plot_aurocs,
    plot_class_accuracy,
    plot_feature_map,
    style,
)
from utils.text_files import writable_folder
from utils.weights import load_weights

POINTS_PER_KIND = 300  # of the 2-D map
Records = dict[str, list[dict]]  # row -> its records, one per seed


def draw_run(run: Path, drp: Path | None, ood_set: str, out: Path, prefix: str) -> None:
    """Draws the feature map and the attention of a run that test.py evaluated, and copies test.py's plots."""
    checkpoint, detector = load_run(run), load_checkpoint(find_detector(run))
    args, compute = checkpoint["args"], Compute(torch.device("cpu"))
    benchmark, drp = BENCHMARKS[args["ds"]], drp or Path(args["drp"])
    normalization = NORMALIZATIONS[args.get("normalization", benchmark.training["normalization"])]
    model = build_model(args["model"], benchmark.num_classes)
    load_weights(model, checkpoint["model"])
    model.eval()

    def features(images, labels):
        batches = evaluation_batches(
            images, labels, batch_size=500, normalization=normalization, device=compute.device
        )
        return extract_features(model, batches, len(labels), compute, autocast(compute.device, "fp32"))

    groups = {name: torch.from_numpy(of) for name, of in shot_groups(checkpoint["class_counts"]).items()}
    test = features(*benchmark.load_split(drp, False))
    ood = features(*benchmark.load_ood([ood_set], drp)[ood_set])
    parts = {
        "head classes": test.features[groups["many"][test.labels]],
        "tail classes": test.features[groups["few"][test.labels]],
        f"OOD ({ood_set})": ood.features[ood.labels < 0],
    }
    torch.manual_seed(0)
    parts = {name: part[torch.randperm(len(part))[:POINTS_PER_KIND]] for name, part in parts.items()}
    points = TSNE(random_state=0, init="pca").fit_transform(torch.cat(list(parts.values())).numpy())
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    plot_feature_map(points, {name: owner == i for i, name in enumerate(parts)}, out / f"{prefix}map.png")
    if "fc" in detector["calibrations"]:
        attention = detector["calibrations"]["fc"]["calibration"]["attention"]
        plot_attention(attention, out / f"{prefix}attention.png")
    for name in ("scores.png", "roc.png"):
        if out != run and (run / name).exists():
            shutil.copyfile(run / name, out / f"{prefix}{name}")


def draw_classes(rows: list[str], records: Records, path: Path) -> None:
    """Draws mean accuracies per class for rows of a protocol, without FC, and for the first row with FC."""

    def mean_by_class(row, calibration):
        every = (entry for record in records[row] for entry in record["results"]["accuracy"])
        found = [entry["per_class"] for entry in every if entry["calibration"] == calibration]
        return np.mean(np.array(found, float), axis=0)

    accuracies = {f"{ROWS[rows[0]].label}, with FC": mean_by_class(rows[0], "fc")}
    accuracies |= {ROWS[row].label: mean_by_class(row, "none") for row in rows}
    plot_class_accuracy(accuracies, records[rows[0]][0]["args"]["class_counts"], path)


def draw_aurocs(rows: list[str], records: Records, path: Path) -> None:
    """Draws the mean AUROC of every score for rows of a protocol, and of the paper's score with FC."""
    every = [way_of(entry) for entry in records[rows[0]][0]["results"]["mean"]]
    ways = {way.score: way for way in every if way.calibration == "none"}
    ways["energy, FC"] = Way("fc", "energy")
    plot_aurocs(
        {
            ROWS[row].label: {name: values_of(records[row], way, "auroc") for name, way in ways.items()}
            for row in rows
        },
        path,
    )


def draw_strengths(rows: list[str], records: Records, path: Path) -> None:
    """Draws AUROC, accuracy and few-shot accuracy of the first row against the strength of FC."""
    row, fc = rows[0], Way("fc", "energy")
    ways = {0.0: (row, Way("none", "energy")), 1.0: (row, fc)}
    further = [name for name in EVALUATED["strength"] if f"{row}-{name}" in records]
    ways |= {float(name.removeprefix("fc")): (f"{row}-{name}", fc) for name in further}
    shown = {"AUROC (energy)": "auroc", "accuracy": "all", "few-shot accuracy": "few"}
    with figure(path, width=7.2, height=3.8) as (ax,):
        for i, (label, metric) in enumerate(shown.items()):
            values = {s: values_of(records[source], way, metric) for s, (source, way) in ways.items()}
            draw_ranges(ax, i, f"{ROWS[row].label}: {label}", values)
        ax.set(xlabel="strength S of feature calibration (1 is the paper's)", ylabel="percent")
        ax.legend(fontsize="small")


def draw_epochs(rows: list[str], records: Records, path: Path) -> None:
    """Draws AUROC and accuracy of the unchanged network against the epoch, mean and range over seeds."""
    way = Way("none", "energy")
    with figure(path, columns=2) as axes:
        for i, row in enumerate(rows):
            of_row = [records[name] for name in records if name.partition("-epoch")[0] == row]
            by_epoch = {}
            for record in chain.from_iterable(of_row):
                by_epoch.setdefault(epochs(record)[0], {})[record["seed"]] = metrics(record, way)
            for ax, metric in zip(axes, ("auroc", "all"), strict=True):
                values = {e: [of[metric] for of in seeds.values()] for e, seeds in by_epoch.items()}
                draw_ranges(ax, i, ROWS[row].label, values)
        for ax, label in zip(axes, ("AUROC, energy (%)", "accuracy (%)"), strict=True):
            ax.set(xlabel="epoch", ylabel=label)
        axes[0].legend(fontsize="small")


def draw_ranges(ax: Axes, index: int, label: str, values: dict[int, list[float]]) -> None:
    """Draws a line of means with bars from the lowest to the highest seed; values are fractions."""
    places = sorted(values)
    percent = [100 * np.asarray(values[place], float) for place in places]
    middle = np.array([seeds.mean() for seeds in percent])
    reach = [middle - [seeds.min() for seeds in percent], [seeds.max() for seeds in percent] - middle]
    look = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "capsize": 2}
    ax.errorbar(places, middle, reach, label=label, **look, **style(index))


def values_of(records: list[dict], way: Way, metric: str) -> list[float]:
    """Returns a metric's value for every seed."""
    return [metrics(record, way)[metric] for record in records]


OF_RESULTS = {
    "classes": draw_classes,
    "aurocs": draw_aurocs,
    "strengths": draw_strengths,
    "epochs": draw_epochs,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("run", type=flags.path, help="a run directory of train.py, evaluated by test.py")
    run.add_argument("--drp", type=flags.path, help="the data folder; default: the run's")
    run.add_argument("--ood_set", default="digits89", help="the OOD set on the map")
    for kind in OF_RESULTS:
        add = kinds.add_parser(kind).add_argument
        add("group", help="a folder of --results")
        add("rows", nargs="+", choices=tuple(ROWS), metavar="ROW")
        add("--results", type=flags.path, default=RESULTS)
    for kind in kinds.choices.values():
        kind.add_argument("--prefix", help="of the file names")
        out = "default: the run directory or the results' folder; docs/figures for the documents' results"
        kind.add_argument("--out", type=flags.path, help=out)
    args = parser.parse_args(argv)
    prefix = f"{args.prefix}_" if args.prefix else ""
    if args.kind == "run":
        out = writable_folder(args.out or args.run)
        return draw_run(args.run, args.drp, args.ood_set, out, prefix)
    ours = args.results == RESULTS
    out = writable_folder(args.out or (ROOT / "docs" / "figures" if ours else args.results / args.group))
    records = load_records(args.results, args.group)
    known = {name.partition("-epoch")[0] for name in records} if args.kind == "epochs" else set(records)
    missing = [row for row in args.rows if row not in known]
    if missing:
        raise InputError(f"{args.group} has no row {missing[0]}; there are {', '.join(records)}")
    OF_RESULTS[args.kind](args.rows, records, out / f"{prefix}{args.kind}.png")


if __name__ == "__main__":
    exit_cleanly(main)
