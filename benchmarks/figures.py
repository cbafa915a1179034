"""The figures in the documents, from a run directory and from result files.

python -m benchmarks.figures run runs/demo/patt --prefix digits
    a 2-D map of features, the attention weights, and copies of test.py's plots
python -m benchmarks.figures classes digits_default patt no_isac no_tla ce --prefix digits
    accuracy per class, with and without PATT's parts
python -m benchmarks.figures aurocs digits_default patt oe ce --prefix digits
    mean AUROC of every score, with the spread over seeds
python -m benchmarks.figures strengths digits_default patt --prefix digits
    AUROC and accuracy against the strength of feature calibration
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from sklearn.manifold import TSNE

from benchmarks.records import Way, calibration_of, evaluation, load_records
from benchmarks.rows import EVALUATED, ROWS
from benchmarks.runs import RESULTS, ROOT
from datasets.loader import evaluation_batches
from datasets.normalization import NORMALIZATIONS
from datasets.registry import BENCHMARKS
from models import build_model
from utils import flags
from utils.checkpoint import load_checkpoint, load_run, load_weights
from utils.detector import find_detector
from utils.distributed import Compute, autocast
from utils.errors import InputError, exit_cleanly
from utils.evaluation import extract_features
from utils.metrics import shot_groups
from utils.plots import plot_attention, plot_aurocs, plot_class_accuracy, plot_feature_map, plot_strengths
from utils.text_files import writable_folder

POINTS_PER_KIND = 300  # of the 2-D map


def draw_run(run: Path, drp: Path | None, ood_set: str, prefix: str, out: Path) -> None:
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

    groups = shot_groups(checkpoint["class_counts"])
    groups = {name: torch.from_numpy(members) for name, members in groups.items()}
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
    if "fc" in detector["calibrations"]:
        attention = detector["calibrations"]["fc"]["calibration"]["attention"]
        plot_attention(attention, out / f"{prefix}_attention.png")
    for name in ("scores.png", "roc.png"):
        if (Path(run) / name).exists():
            shutil.copyfile(Path(run) / name, out / f"{prefix}_{name}")


def rows_of(results: Path, group: str, rows: list[str]) -> dict[str, list[dict]]:
    """Returns row -> its records, by seed; then those of the rows' further evaluations."""
    records = load_records(results, group)
    missing = [row for row in rows if row not in records]
    if missing:
        raise InputError(f"{group} has no row {missing[0]}; there are {', '.join(records)}")
    further = [name for name in records if name.partition("-")[0] in rows]
    return {row: records[row] for row in [*rows, *sorted(set(further) - set(rows))]}


def draw_classes(records: dict[str, list[dict]], path: Path) -> None:
    """Draws mean accuracies per class for rows of a protocol, without FC, and for the first row with FC."""

    def mean_by_class(row, calibration):
        every = (a for r in records[row] for a in r["results"]["accuracy"])
        found = [a["per_class"] for a in every if calibration_of(a) == calibration]
        return np.mean(np.array(found, float), axis=0)

    first = next(iter(records))
    accuracies = {f"{ROWS[first].label}, with FC": mean_by_class(first, "fc")}
    accuracies |= {ROWS[row].label: mean_by_class(row, "none") for row in records if row in ROWS}
    plot_class_accuracy(accuracies, records[first][0]["args"]["class_counts"], path)


def draw_aurocs(records: dict[str, list[dict]], path: Path) -> None:
    """Draws the mean AUROC of every score for rows of a protocol, and of the paper's score with FC."""
    ways = {}
    for mean in next(iter(records.values()))[0]["results"]["mean"]:
        way = Way(calibration_of(mean), mean["score"])
        if way.calibration == "none" or way == Way("fc", "energy"):
            ways["energy, FC" if way.calibration == "fc" else way.score] = way
    plot_aurocs(
        {
            ROWS[row].label: {
                name: [evaluation(r, way)["auroc"] for r in found] for name, way in ways.items()
            }
            for row, found in records.items()
            if row in ROWS
        },
        path,
    )


def draw_strengths(records: dict[str, list[dict]], path: Path) -> None:
    """Draws AUROC, accuracy and few-shot accuracy of the first row against the strength of FC."""
    row, none = next(iter(records)), Way("none", "energy")
    fc = none._replace(calibration="fc")
    ways = {0.0: (row, none), 1.0: (row, fc)}
    further = [name for name in EVALUATED["strength"] if f"{row}-{name}" in records]
    ways |= {float(name.removeprefix("fc")): (f"{row}-{name}", fc) for name in further}
    metrics = {"AUROC (energy)": "auroc", "accuracy": "all", "few-shot accuracy": "few"}
    lines = {
        f"{ROWS[row].label}: {label}": {
            strength: [evaluation(record, way)[metric] for record in records[source]]
            for strength, (source, way) in ways.items()
        }
        for label, metric in metrics.items()
    }
    plot_strengths(lines, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("run", type=flags.path, help="a run directory of train.py, evaluated by test.py")
    run.add_argument("--drp", type=flags.path, help="the data folder; default: the run's")
    run.add_argument("--ood_set", default="digits89", help="the OOD set on the map")
    of_results = {"classes": draw_classes, "aurocs": draw_aurocs, "strengths": draw_strengths}
    for kind in of_results:
        kinds.add_parser(kind)
    for kind, of_kind in kinds.choices.items():
        if kind in of_results:
            of_kind.add_argument("group", help="a folder of --results")
            of_kind.add_argument("rows", nargs="+", choices=tuple(ROWS), metavar="ROW")
            of_kind.add_argument("--results", type=flags.path, default=RESULTS)
        of_kind.add_argument("--prefix", required=True, help="of the file names")
        of_kind.add_argument("--out", type=flags.path, default=ROOT / "docs" / "figures")
    args = parser.parse_args(argv)
    out = writable_folder(args.out)
    if args.kind == "run":
        draw_run(args.run, args.drp, args.ood_set, args.prefix, out)
    else:
        records = rows_of(args.results, args.group, args.rows)
        of_results[args.kind](records, out / f"{args.prefix}_{args.kind}.png")


if __name__ == "__main__":
    exit_cleanly(main)
