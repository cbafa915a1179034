"""Results of one evaluation as text and files."""

import json
from pathlib import Path

from utils.console import say
from utils.errors import InputError
from utils.flags import FIGURES
from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS, OOD_METRICS
from utils.plots import plot_roc, plot_score_histograms
from utils.text_files import csv_text, write_text

BRIEF = ("auroc", "fpr95")  # columns of the table of every score


def markdown_tables(results, score):
    """Formats one score's OOD table, the means of every score, and the accuracy table, in percent."""
    head = ["OOD set", "calibration", "ID / OOD images", *OOD_COLUMNS.values()]
    lines = []
    for mean in (m for m in results["mean"] if m["score"] == score):
        name = mean["calibration"]
        for row in (r for r in results["rows"] if r["score"] == score and r["calibration"] == name):
            sizes = f"{row['n_id']} / {row['n_ood']}"
            lines.append([row["ood"], name, sizes, *(_percent(row[m]) for m in OOD_METRICS)])
        lines.append(["**mean**", name, "", *(_percent(mean[m]) for m in OOD_METRICS)])
    names = [a["calibration"] for a in results["accuracy"]]
    means = {(m["score"], m["calibration"]): m for m in results["mean"]}
    every = [
        [name, *(_percent(means[name, way][metric]) for way in names for metric in BRIEF)]
        for name in dict.fromkeys(m["score"] for m in results["mean"])
    ]
    accuracy = [[a["calibration"], *(_percent(a[s]) for s in ACCURACY_COLUMNS)] for a in results["accuracy"]]
    return "\n".join(
        [
            _table(head, lines),
            "",
            f"Percent; OOD is the positive class; score: {score}. FPR95: share of ID flagged where "
            "95 % of OOD is caught. FPR95-ID: share of OOD accepted where 95 % of ID is kept.",
            "",
            "Every score, mean over the OOD sets; sets can disagree, results.json has each:",
            "",
            _table(["score", *(f"{name}: {OOD_COLUMNS[m]}" for name in names for m in BRIEF)], every),
            "",
            _table(["calibration", *ACCURACY_COLUMNS.values()], accuracy),
        ]
    )


def summary(results, score):
    """Describes what was evaluated, and what readers must know about it, as a line and a list in Markdown."""
    about = [results["dataset"], results["network"]]
    for name in ("rho", "normalization", "seed"):
        if results.get(name) is not None:
            about.append(f"{name} {results[name]}")
    if results["epoch"] is not None:
        about.append(f"epoch {results['epoch']} of {results['epochs'] or 'an unknown number'}")
    about.append(f"score {score}")
    if results["tnorm"]:
        about.append("unit classifier rows without bias (--tnorm)")
    return "\n".join([f"{', '.join(about)}.", "", *(f"* **Note:** {note}." for note in results["notes"]), ""])


def results_csv(results):
    """Formats a CSV row for each OOD set, calibration and score; metrics are fractions, ``fc_strength`` is
    empty without FC."""
    about = {"dataset": results["dataset"]}
    strength = {True: results.get("fc_strength"), False: None}
    return csv_text([about | row | {"fc_strength": strength[row["fc"]]} for row in results["rows"]])


def report(results, scores, score, folder, figures="png"):
    """Prints the tables, and writes ``results.json``, ``results.csv``, ``results.md``, ``scores.png`` and
    ``roc.png`` into the folder.

    Args:
        results: from :func:`utils.evaluation.evaluate`, with a description of the evaluation: ``dataset``,
            ``network``, ``normalization``, ``seed``, ``epoch``, ``epochs``, ``tnorm``, ``precision``,
            ``notes``, ``checkpoint``, ``environment`` and, if there is one, ``rho``.
        scores: its scores. score: the one that table and plots show.
        figures: format of the plots, png, pdf or svg.
    """
    folder = Path(folder)
    say(summary(results, score))
    say(markdown_tables(results, score))
    try:
        _write(results, scores, score, folder, figures)
    except OSError as error:
        raise InputError(f"the results could not be written to {folder}: {error.strerror or error}") from None
    names = ("results.json", "results.csv", "results.md", f"scores.{figures}", f"roc.{figures}")
    say(f"written: {', '.join(str(folder / name) for name in names)}")


def _write(results, scores, score, folder, figures):
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "results.csv", results_csv(results))
    text = f"# {results['dataset']}\n\n{summary(results, score)}\n{markdown_tables(results, score)}\n"
    write_text(folder / "results.md", text)
    curves = {f"calibration: {name}": of_scores[score] for name, of_scores in scores.items()}
    epoch = results.get("epoch") and f"epoch {results['epoch']}"
    known = (results["dataset"], results.get("network"), epoch, f"score: {score}")
    title = ", ".join(part for part in known if part)
    plot_score_histograms(curves, folder / f"scores.{figures}", title)
    plot_roc(curves, folder / f"roc.{figures}", title)
    for other in {*FIGURES} - {figures}:  # of an earlier evaluation
        for plot in ("scores", "roc"):
            (folder / f"{plot}.{other}").unlink(missing_ok=True)


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


def _table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
