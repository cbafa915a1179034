"""Plots of a run and of its evaluation, legible in black and white.

The file's suffix decides the format: png, pdf or svg. Figures are drawn without pyplot: no backend is needed.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sklearn.metrics import auc, roc_curve

from utils.losses import TERMS
from utils.text_files import whole_file

# Notebooks name their backend here, and importing matplotlib fails if it is not installed.
os.environ.pop("MPLBACKEND", None)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

LINES = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (2, 4)))  # dashes alone tell them apart
SHADES = ("#08306b", "#cb6015", "#2a7f4f", "#777777", "#6a3d9a", "#000000")
MARKERS = "os^vxD"


def plain(name: str) -> str:
    """Returns a label that matplotlib shows as text: neither a formula nor a hidden legend entry."""
    name = name.encode("utf-8", "backslashreplace").decode()
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


@contextmanager
def figure(path: str | Path, columns=1, width=4.6, height=3.4, title="") -> Iterator[Sequence[Axes]]:
    """Yields a row of axes, saved to ``path`` at the end."""
    fig = Figure(figsize=(width * columns, height), layout="constrained")
    if title:
        fig.suptitle(plain(title), fontsize="medium")
    with warnings.catch_warnings(), whole_file(Path(path), "xb") as file:
        warnings.filterwarnings("ignore", r"Glyph \d+ ")  # a letter that the font lacks is a box
        yield fig.subplots(1, columns, squeeze=False)[0]
        fig.savefig(file, dpi=110, format=Path(path).suffix[1:])


def style(index: int) -> dict:
    return {"color": SHADES[index % len(SHADES)], "linestyle": LINES[index % len(LINES)]}


def plot_history(history: Sequence[dict], path: str | Path) -> None:
    """Plots loss terms and accuracies per epoch, from records of ``log.jsonl``; omits terms that stay 0."""
    epochs = [record["epoch"] for record in history]
    kind = "val_accuracy" if "val_accuracy" in history[-1] else "train_accuracy"
    with figure(path, columns=2) as (losses, accuracies):
        for i, term in enumerate(TERMS):
            values = [record[term] for record in history]
            if any(values):
                losses.plot(epochs, values, marker=".", label=term, **style(i))
        losses.set(xlabel="epoch", ylabel="loss (mean over the epoch)")
        for i, shot in enumerate(("all", "many", "medium", "few")):
            values = [record[kind][shot] for record in history]
            percent = [np.nan if value is None else 100 * value for value in values]
            accuracies.plot(epochs, percent, marker=".", label=shot, **style(i))
        accuracies.set(xlabel="epoch", ylabel=f"{kind.replace('_', ' ')} (%)")
        for ax in (losses, accuracies):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            ax.legend()


def plot_score_histograms(curves: dict[str, dict], path: str | Path, title: str = "") -> None:
    """Plots histograms of the first set's ID scores and of all OOD scores, and the threshold that catches
    95 % of OOD; a panel per entry of ``curves``, its title -> OOD set -> (id_scores, ood_scores)."""
    with figure(path, columns=len(curves), title=title) as axes:
        for ax, (name, sets) in zip(axes, curves.items(), strict=True):
            id_scores = next(iter(sets.values()))[0]
            ood_scores = np.concatenate([ood for _, ood in sets.values()])
            low, high = np.percentile(np.concatenate([id_scores, ood_scores]), (0.2, 99.8))
            margin = 1e-6 * max(1, abs(low))  # for scores that are all equal
            bins = np.linspace(low - margin, high + margin, 60)
            ax.hist(id_scores, bins, density=True, alpha=0.45, color=SHADES[0], label="ID")
            ax.hist(ood_scores, bins, density=True, histtype="step", color=SHADES[1], label="OOD")
            threshold = np.quantile(ood_scores, 0.05)
            flagged = 100 * np.mean(id_scores >= threshold)
            label = f"95 % of OOD, {flagged:.1f} % of ID\nare to the right"
            ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=label)
            ax.set_title(plain(name), fontsize="medium")
            ax.set(xlabel="score (higher = more OOD)", ylabel="density")
            ax.set_ylim(top=1.5 * ax.get_ylim()[1])  # room for the legend
            ax.legend(fontsize="small", loc="upper right")


def plot_roc(curves: dict[str, dict], path: str | Path, title: str = "") -> None:
    """Plots ROC curves, OOD positive; see :func:`plot_score_histograms`."""
    with figure(path, columns=len(curves), width=4.4, height=4.6, title=title) as axes:
        for ax, (name, sets) in zip(axes, curves.items(), strict=True):
            areas = []
            for i, (ood, pair) in enumerate(sets.items()):
                fpr, tpr, _ = roc_curve(np.repeat([0, 1], list(map(len, pair))), np.concatenate(pair))
                areas.append(100 * auc(fpr, tpr))
                ax.plot(fpr, tpr, label=plain(f"{ood}, AUROC {areas[-1]:.2f} %"), **style(i))
            ax.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, label="chance")
            ax.set_title(f"{plain(name)}, mean AUROC {np.mean(areas):.2f} %", fontsize="medium")
            ax.set(xlabel="ID images flagged (false-positive rate)", ylabel="OOD images caught (recall)")
            ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
            ax.legend(fontsize="small", loc="lower right")
