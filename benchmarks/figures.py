"""The figures in the documents, from result files.

python -m benchmarks.figures classes digits_default patt no_isac no_tla ce
    accuracy per class, with and without PATT's parts
python -m benchmarks.figures epochs cifar10_ResNet20_e100 la patt
    AUROC and accuracy against the epoch, from evaluations of copied checkpoints (ROW-epochN-seedS.json)
"""

import argparse
from itertools import chain

import numpy as np

from benchmarks.notes import epoch_of
from benchmarks.records import RESULTS, Way, load_records, metrics
from benchmarks.rows import label_of
from benchmarks.tabulate import Records, comparable
from utils import flags, plots
from utils.errors import InputError, exit_cleanly


def draw_classes(rows: list[str], records: Records, path: str) -> None:
    """Draws mean accuracies per class, without FC, and for the first row also with FC."""

    def mean_by_class(row, calibration):
        found = [metrics(record, Way(calibration, ""))["per_class"] for record in records[row]]
        return np.mean(np.array(found, float), axis=0)

    accuracies = {f"{label_of(rows[0])}, with FC": mean_by_class(rows[0], "fc")}
    accuracies |= {label_of(row): mean_by_class(row, "none") for row in rows}
    counts = records[rows[0]][0]["args"]["class_counts"]
    order = np.argsort(counts, kind="stable")[::-1]
    with plots.figure(path, width=7.2, height=3.8) as (ax,):
        for i, (name, values) in enumerate(accuracies.items()):
            ax.plot(100 * values[order], marker=plots.MARKERS[i], markersize=4, label=name, **plots.style(i))
        ax.set(xlabel="class, from head to tail (training images)", ylabel="test accuracy (%)")
        if len(order) <= 20:
            ax.set_xticks(range(len(order)), [str(counts[c]) for c in order])
        ax.legend(fontsize="small")


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


KINDS = {"classes": draw_classes, "epochs": draw_epochs}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("kind", choices=tuple(KINDS))
    add("group", help="a folder of --results")
    add("rows", nargs="+", metavar="ROW")
    add("--results", type=flags.path, default=RESULTS, help="the folder of the result files")
    add("--out", default="", help="the file's prefix, such as docs/figures/digits_")
    args = parser.parse_args(argv)
    folder = args.results / args.group
    records = load_records(folder) if args.kind == "epochs" else comparable(folder, "ablation", args.rows)[0]
    KINDS[args.kind](args.rows, records, f"{args.out}{args.kind}.png")


if __name__ == "__main__":
    exit_cleanly(main)
