"""Pictures of a run and of its evaluation, as PNG files. They can be told apart in black and white."""

from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.metrics import roc_curve

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be chosen first)

LINES = ("-", "--", ":", "-.")
SHADES = ("#08306b", "#cb6015", "#2a7f4f", "#777777", "#6a3d9a", "#000000")


@contextmanager
def figure(path, columns=1, width=4.6, height=3.4):
    """A row of axes, saved to ``path`` as a whole file at the end."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    fig, axes = plt.subplots(
        1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained"
    )
    try:
        yield axes[0]
        fig.savefig(temporary, dpi=110, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(fig)


def style(index):
    """A colour and a dash pattern; the dashes alone tell the lines apart."""
    return {"color": SHADES[index % len(SHADES)], "linestyle": LINES[index % len(LINES)]}


def plot_class_counts(class_counts, path):
    """The long tail: training images by class."""
    with figure(path) as (ax,):
        ax.bar(
            range(len(class_counts)),
            class_counts,
            color=SHADES[0],
            width=1.0 if len(class_counts) > 50 else 0.8,
        )
        ax.set(
            xlabel="class",
            ylabel="training images",
            title=f"{sum(class_counts):,} images, {len(class_counts)} classes",
        )


def plot_history(history, path):
    """Losses by term and accuracies by shot over the epochs of ``log.jsonl``'s records."""
    if not history:
        return
    epochs = [record["epoch"] for record in history]
    kind = "val_accuracy" if "val_accuracy" in history[-1] else "train_accuracy"
    with figure(path, columns=2) as (losses, accuracies):
        for i, term in enumerate(("loss", "isac", "tla", "oe")):
            losses.plot(epochs, [record[term] for record in history], label=term, **style(i))
        losses.set(xlabel="epoch", ylabel="loss (mean over the epoch)")
        losses.legend()
        for i, shot in enumerate(("all", "many", "medium", "few")):
            values = [
                np.nan if record[kind][shot] is None else 100 * record[kind][shot] for record in history
            ]
            accuracies.plot(epochs, values, label=shot, **style(i))
        accuracies.set(
            xlabel="epoch", ylabel=f"{'validation' if kind.startswith('val') else 'training'} accuracy (%)"
        )
        accuracies.legend()


def plot_score_histograms(id_scores, ood_scores, path):
    """Score histograms of the ID test set and all OOD sets, one panel for each way of scoring.

    Args:
        id_scores, ood_scores: dicts of title (such as "with FC") to arrays.
    """
    with figure(path, columns=len(id_scores)) as axes:
        for ax, title in zip(axes, id_scores, strict=True):
            both = np.concatenate([id_scores[title], ood_scores[title]])
            bins = np.linspace(*np.percentile(both, (0.2, 99.8)), 60)
            ax.hist(id_scores[title], bins, density=True, alpha=0.45, color=SHADES[0], label="ID test")
            ax.hist(
                ood_scores[title],
                bins,
                density=True,
                histtype="step",
                linewidth=1.6,
                color=SHADES[1],
                label="OOD",
            )
            ax.set(xlabel="score (higher = more OOD)", ylabel="density", title=title)
            ax.legend()


def plot_roc(curves, path):
    """ROC curves, OOD positive, one panel for each way of scoring.

    Args:
        curves: dict of title to a dict of OOD set name to (id_scores, ood_scores).
    """
    with figure(path, columns=len(curves), height=3.8) as axes:
        for ax, (title, sets) in zip(axes, curves.items(), strict=True):
            for i, (name, (id_scores, ood_scores)) in enumerate(sets.items()):
                truth = np.r_[np.zeros(len(id_scores)), np.ones(len(ood_scores))]
                fpr, tpr, _ = roc_curve(truth, np.r_[id_scores, ood_scores])
                ax.plot(fpr, tpr, label=name, **style(i))
            ax.set(
                xlabel="ID images flagged (false-positive rate)",
                ylabel="OOD images caught (recall)",
                title=title,
            )
            ax.legend()


def plot_attention(attention, path):
    """The attention vector of feature calibration, sorted: how many dimensions it dampens (below 1) and
    stresses (above)."""
    with figure(path) as (ax,):
        ax.plot(np.sort(np.asarray(attention))[::-1], color=SHADES[0])
        ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set(
            xlabel="feature dimension, sorted",
            ylabel="attention weight A",
            title=f"{len(attention)} dimensions",
            ylim=(0, 2.05),
        )


def plot_feature_map(points, kinds, path):
    """A 2-D map of features.

    Args:
        points: (N, 2). kinds: dict of name (such as "head classes") to a boolean array (N,); at most four,
            drawn in order.
    """
    with figure(path, width=5.6, height=4.8) as (ax,):
        looks = (("o", "#9ecae1"), ("^", SHADES[0]), ("x", SHADES[1]), ("s", "#777777"))
        for (name, chosen), (marker, shade) in zip(kinds.items(), looks, strict=False):
            ax.scatter(
                *points[chosen].T, s=14, marker=marker, color=shade, linewidths=0.8, alpha=0.8, label=name
            )
        ax.set(xticks=[], yticks=[])
        ax.legend()


def plot_class_accuracy(accuracies, class_counts, path):
    """Accuracy by class, from head to tail.

    Args:
        accuracies: dict of name to per-class accuracies (C,), fractions, None or NaN for a class without
            images, which leaves a gap. class_counts: (C,) training images.
    """
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    with figure(path, width=7.2, height=3.8) as (ax,):
        for i, (name, values) in enumerate(accuracies.items()):
            ax.plot(
                100 * np.asarray(values, float)[order],
                marker="os^vxD"[i % 6],
                markersize=4,
                label=name,
                **style(i),
            )
        ax.set(xlabel="class, from head to tail (training images)", ylabel="test accuracy (%)")
        if len(order) <= 20:
            ax.set_xticks(range(len(order)), [str(class_counts[c]) for c in order])
        ax.legend(fontsize=8)
