"""Results of one evaluation as text: tables in Markdown, and CSV.

``results`` is what :func:`utils.evaluation.evaluate` returns, with a description of the evaluation:
``dataset``, ``network``, ``normalization``, ``seed``, ``epoch``, ``epochs``, ``score``, ``tnorm``, ``notes``,
``class_counts``, ``class_names`` and, if there is one, ``rho`` and ``data``, a name for the user's images.
"""

from collections.abc import Sequence
from typing import Any

from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS, OOD_METRICS
from utils.text_files import csv_text

BRIEF = ("auroc", "fpr95")  # columns of the table of every score
MAX_CLASSES = 100  # of the table of classes


def title(results: dict[str, Any]) -> str:
    """Returns a line for plots: data, network, epoch and score."""
    epoch = f", epoch {results['epoch']}" if results["epoch"] else ""
    return f"{_data(results)}, {results['network']}{epoch}, score: {results['score']}"


def summary(results: dict[str, Any]) -> str:
    """Describes what was evaluated, and what readers must know about it, as a line and a list in Markdown."""
    about = [_data(results), results["network"]]
    for name in ("rho", "normalization", "seed"):
        if results.get(name) is not None:
            about.append(f"{name} {results[name]}")
    if results["epoch"] is not None:
        about.append(f"epoch {results['epoch']} of {results['epochs'] or 'an unknown number'}")
    about.append(f"score {results['score']}")
    if results["tnorm"]:
        about.append("unit classifier rows without bias (--tnorm)")
    return "\n".join([f"{', '.join(about)}.", "", *(f"* **Note:** {note}." for note in results["notes"]), ""])


def tables(results: dict[str, Any]) -> str:
    """Formats one score's OOD table and the means of every score, if there are OOD sets, and the accuracy
    table, in percent."""
    rows = [[a["calibration"], *(_percent(a[s]) for s in ACCURACY_COLUMNS)] for a in results["accuracy"]]
    accuracy = _table(["calibration", *ACCURACY_COLUMNS.values()], rows)
    if not results["rows"]:
        return f"Percent; without OOD images there is only accuracy.\n\n{accuracy}"
    score, lines, every = results["score"], [], {}
    for mean in results["mean"]:
        name = mean["calibration"]
        every.setdefault(mean["score"], []).extend(_percent(mean[metric]) for metric in BRIEF)
        if mean["score"] != score:
            continue
        for row in (r for r in results["rows"] if r["score"] == score and r["calibration"] == name):
            sizes = f"{row['n_id']} / {row['n_ood']}"
            lines.append([row["ood"], name, sizes, *(_percent(row[m]) for m in OOD_METRICS)])
        lines.append(["**mean**", name, "", *(_percent(mean[m]) for m in OOD_METRICS)])
    of_calibrations = [f"{a['calibration']}: {OOD_COLUMNS[m]}" for a in results["accuracy"] for m in BRIEF]
    return "\n".join(
        [
            _table(["OOD set", "calibration", "ID / OOD images", *OOD_COLUMNS.values()], lines),
            "",
            f"Percent; OOD is the positive class; score: {score}. FPR95: share of ID flagged where "
            "95 % of OOD is caught. FPR95-ID: share of OOD accepted where 95 % of ID is kept.",
            "",
            "Every score, mean over the OOD sets; sets can disagree, results.json has each:",
            "",
            _table(["score", *of_calibrations], [[name, *cells] for name, cells in every.items()]),
            "",
            accuracy,
        ]
    )


def markdown(results: dict[str, Any]) -> str:
    """Formats results.md: what was evaluated, the tables, and accuracy per class, rarest last."""
    text = f"# {_data(results)}\n\n{summary(results)}\n{tables(results)}\n"
    counts, accuracies = results["class_counts"], results["accuracy"]
    if len(counts) > MAX_CLASSES:
        return text
    names = results["class_names"] or list(map(str, range(len(counts))))
    rows = [
        [names[c], str(counts[c]), *(_percent(a["per_class"][c]) for a in accuracies)]
        for c in sorted(range(len(counts)), key=lambda c: -counts[c])
    ]
    head = ["class", "training images", *(f"{a['calibration']}: ACC ↑" for a in accuracies)]
    return f"{text}\nAccuracy of each class:\n\n{_table(head, rows)}\n"


def results_csv(results: dict[str, Any]) -> str:
    """Formats a CSV row for each OOD set, calibration and score; metrics are fractions, ``fc_strength`` is
    empty without FC."""
    about, strength = {"dataset": results["dataset"]}, results.get("fc_strength")
    return csv_text([about | r | {"fc_strength": strength if r["fc"] else None} for r in results["rows"]])


def _data(results):
    return results.get("data") or results["dataset"]


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
