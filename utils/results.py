"""An evaluation from features to files: fits, evaluates, prints the tables, writes results and detector."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.calibration import Calibration, Classifier
from utils.checkpoint import progress_of
from utils.detector import FILE, Subject, write_detector
from utils.distributed import environment, resolved_precision
from utils.errors import InputError, say
from utils.evaluation import Features, Settings, evaluate
from utils.fitting import TrainingSets, fit_calibrations, trained_statistics
from utils.flags import FIGURES
from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS, OOD_METRICS, shot_groups
from utils.plots import plot_roc, plot_score_histograms
from utils.text_files import csv_text, markdown_table, write_text

FEATURES = "features"  # the folder of --save_features
OUTPUTS = (FILE, "results.csv", "results.md", "results.json")
OUTPUTS += tuple(f"{plot}.{kind}" for plot in ("scores", "roc") for kind in FIGURES)
BRIEF = ("auroc", "fpr95")  # columns of the table of every score


class Sets(NamedTuple):
    """The features of an evaluation: of the ID test set, the OOD sets by name, and what is fitted on."""

    test: Features
    ood: dict[str, Features]
    fitting: TrainingSets


def conclude(
    subject: Subject, sets: Sets, settings: Settings, about: dict, folder: Path, device: torch.device
) -> None:
    """Fits calibrations and scores, evaluates them, prints the tables and writes results and detector.

    Without a set of OOD images it evaluates accuracy alone. After calibration on test images it writes no
    detector. ``about``: what results.json says beside the results. ``device``: where the network is. Raises
    InputError if the score cannot be fitted or a file cannot be written; earlier results then stay.
    """
    classifier, counts = Classifier.of(subject.model, settings.tnorm), subject.class_counts
    statistics = trained_statistics(subject.checkpoint, *classifier.weight.shape)
    calibrations, facts = fit_calibrations(
        settings.calibrations, classifier, sets.fitting, counts, settings.score, settings.strength, statistics
    )
    results, scores = evaluate(calibrations, sets.test, sets.ood, counts)
    split = settings.calibration_split if "fc" in calibrations else None
    settings = settings._replace(precision=resolved_precision(device, settings.precision))
    about = about | progress_of(subject.checkpoint) | {"calibration_split": split, "score": settings.score}
    about |= {"class_counts": counts, "class_names": subject.class_names}
    about |= {name: getattr(settings, name) for name in ("tnorm", "precision", "save_features")}
    results = about | facts | results | {"environment": environment(device)}
    say(summary(results))
    say(tables(results))
    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as temporary:
            new = Path(temporary)
            write_text(new / "results.json", json.dumps(results, indent=1) + "\n")
            if ood_rows := results_csv(results).strip():
                write_text(new / "results.csv", ood_rows + "\n")
            write_text(new / "results.md", markdown(results))
            if settings.save_features:
                _write_features(sets, classifier, new / FEATURES)
            if split == "test":
                say("calibrated on test images: no detector is written, and an earlier one is removed")
            else:
                write_detector(new / FILE, subject, calibrations, sets.fitting, settings, facts.get("auto"))
            with suppress(OSError, ValueError, TypeError, KeyError):  # of an earlier evaluation, if any
                if json.loads((folder / "results.json").read_text())["save_features"]:
                    shutil.rmtree(folder / FEATURES)
            if settings.save_features and (folder / FEATURES).exists():
                raise InputError(f"{folder / FEATURES} is not this version's: move it away")
            if (folder / "results.json").exists():
                for name in OUTPUTS:
                    (folder / name).unlink(missing_ok=True)
            for file in new.iterdir():
                os.replace(file, folder / file.name)
        if sets.ood:  # last, so a plot that fails costs no number
            curves = {f"calibration: {name}": of[settings.score] for name, of in scores.items()}
            title = f"{_data(results)}, {subject.name}, score: {settings.score}"
            for name, plot in (("scores", plot_score_histograms), ("roc", plot_roc)):
                plot(curves, folder / f"{name}.{settings.figures}", title)
    except OSError as error:
        raise InputError(f"the results could not be written to {folder}: {error.strerror or error}") from None
    say(f"written to {folder}")


def _write_features(sets, classifier, folder):
    folder.mkdir()
    fitting = sets.fitting._asdict() | {"attending": None, "attending_outliers": None}
    named = {"test": sets.test} | {name: of_set for name, of_set in fitting.items() if of_set is not None}
    named |= {f"{name}-ood" if name in named else name: of_set for name, of_set in sets.ood.items()}
    for name, of_set in named.items():
        logits = torch.cat([rows.logits.float() for rows in Calibration(classifier).outputs(of_set.features)])
        np.savez(folder / f"{name}.npz", **of_set._asdict(), logits=logits.cpu())


def summary(results: dict[str, Any]) -> str:
    """Describes what was evaluated and what readers must know about it."""
    about = [_data(results), results["network"]]
    for name in ("rho", "normalization", "seed"):
        if results.get(name) is not None:
            about.append(f"{name} {results[name]}")
    if results["epoch"] is not None:
        about.append(f"epoch {results['epoch']} of {results['epochs'] or 'an unknown number'}")
    if results["rows"]:
        about.append(f"score {results['score']}")
    if results["tnorm"]:
        about.append("unit classifier rows without bias (--tnorm)")
    return "\n".join([f"{', '.join(about)}.", "", *(f"* **Note:** {note}." for note in results["notes"]), ""])


def tables(results: dict[str, Any]) -> str:
    """Formats one score's OOD table and the means of every score, if any, and the accuracy table."""
    rows = [[a["calibration"], *(_percent(a[s]) for s in ACCURACY_COLUMNS)] for a in results["accuracy"]]
    accuracy = markdown_table(["calibration", *ACCURACY_COLUMNS.values()], rows)
    sizes = (f"{name} {members.sum()}" for name, members in shot_groups(results["class_counts"]).items())
    accuracy += f"\n\nClasses, by their training images: {', '.join(sizes)}."
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
            markdown_table(["OOD set", "calibration", "ID / OOD images", *OOD_COLUMNS.values()], lines),
            "",
            f"Percent; OOD is the positive class; score: {score}. FPR95: share of ID flagged where "
            "95 % of OOD is caught. FPR95-ID: share of OOD accepted where 95 % of ID is kept.",
            "",
            "Every score, mean over the OOD sets; sets can disagree, results.json has each:",
            "",
            markdown_table(["score", *of_calibrations], [[name, *cells] for name, cells in every.items()]),
            "",
            accuracy,
        ]
    )


def markdown(results: dict[str, Any]) -> str:
    """Formats results.md: what was evaluated, the tables, and accuracy per class, rarest last."""
    text = f"# {_data(results)}\n\n{summary(results)}\n{tables(results)}\n"
    counts, accuracies = results["class_counts"], results["accuracy"]
    names = results["class_names"] or list(map(str, range(len(counts))))
    rows = [
        [names[c], str(counts[c]), *(_percent(a["per_class"][c]) for a in accuracies)]
        for c in sorted(range(len(counts)), key=lambda c: -counts[c])
    ]
    head = ["class", "training images", *(f"{a['calibration']}: ACC ↑" for a in accuracies)]
    return f"{text}\nAccuracy of each class:\n\n{markdown_table(head, rows)}\n"


def results_csv(results: dict[str, Any]) -> str:
    """Formats a row for each OOD set, calibration and score; metrics are fractions."""
    about, strength = {"dataset": results["dataset"]}, results.get("fc_strength")
    return csv_text([about | r | {"fc_strength": strength if r["fc"] else None} for r in results["rows"]])


def _data(results):
    return results.get("data") or results["dataset"]


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"
