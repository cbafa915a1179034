"""An evaluation from features to files: fits, evaluates, prints the tables, writes results and detector."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.calibration import Calibration, Classifier
from utils.checkpoint import progress_of
from utils.console import say
from utils.detector import FILE, Subject, write_detector
from utils.distributed import resolved_precision
from utils.environment import environment
from utils.errors import InputError
from utils.evaluation import Features, evaluate
from utils.evaluation_flags import Settings
from utils.fitting import TrainingSets, fit_calibrations, trained_statistics
from utils.flags import FIGURES
from utils.plots import plot_roc, plot_score_histograms
from utils.report import markdown, results_csv, summary, tables, title
from utils.text_files import write_text

FEATURES = "features"  # the folder of --save_features
OUTPUTS = (FILE, "results.csv", "results.md", "results.json", FEATURES)
OUTPUTS += tuple(f"{plot}.{kind}" for plot in ("scores", "roc") for kind in FIGURES)


class Sets(NamedTuple):
    """The features of all images of an evaluation: the ID test set, the OOD sets by name, and what is fitted
    on."""

    test: Features
    ood: dict[str, Features]
    fitting: TrainingSets


def conclude(
    subject: Subject,
    sets: Sets,
    settings: Settings,
    about: dict[str, Any],
    folder: Path,
    device: torch.device,
) -> None:
    """Fits calibrations and scores, evaluates them, prints the tables and writes results and detector.

    Without a set of OOD images it evaluates accuracy alone. After calibration on test images it writes no
    detector.

    Args:
        about: what results.json says beside the results: ``dataset``, ``network``, ``normalization``,
            ``notes``, ``checkpoint``; see :mod:`utils.report` for those that the tables use.
        device: where the network is.

    Raises:
        InputError: the score cannot be fitted, or a file cannot be written; earlier results then stay.
    """
    classifier = Classifier.of(subject.model, settings.tnorm)
    counts, training = subject.class_counts, sets.fitting.training
    calibrations, facts = fit_calibrations(
        settings.calibrations,
        classifier,
        sets.fitting,
        counts,
        score=settings.score,
        strength=settings.strength,
        statistics=trained_statistics(subject.checkpoint, len(counts), training.features.shape[1]),
    )
    results, scores = evaluate(calibrations, sets.test, sets.ood, counts)
    split = settings.calibration_split if "fc" in calibrations else None
    settings = settings._replace(precision=resolved_precision(device, settings.precision))
    about = about | progress_of(subject.checkpoint) | {"calibration_split": split, "score": settings.score}
    about |= {"class_counts": counts, "class_names": subject.class_names}
    about |= {"tnorm": settings.tnorm, "precision": settings.precision}
    results = about | facts | results | {"environment": environment(device)}
    say(summary(results))
    say(tables(results))
    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as temporary:
            new = Path(temporary)
            write_text(new / "results.json", json.dumps(results, indent=1) + "\n")
            write_text(new / "results.csv", results_csv(results))
            write_text(new / "results.md", markdown(results))
            if settings.save_features:
                _write_features(sets, classifier, new / FEATURES)
            if split == "test":
                say("no detector is written when test images were used for calibration")
            else:
                write_detector(new / FILE, subject, calibrations, sets.fitting, settings, facts.get("auto"))
            for name in OUTPUTS:  # of an earlier evaluation
                old = folder / name
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            for file in new.iterdir():
                os.replace(file, folder / file.name)
        if sets.ood:  # last, so a plot that fails costs no number
            curves = {f"calibration: {name}": of[settings.score] for name, of in scores.items()}
            for name, plot in (("scores", plot_score_histograms), ("roc", plot_roc)):
                plot(curves, folder / f"{name}.{settings.figures}", title(results))
    except OSError as error:
        raise InputError(f"the results could not be written to {folder}: {error.strerror or error}") from None
    say(f"written to {folder}")


def _write_features(sets, classifier, folder):
    folder.mkdir()
    named = {"test": sets.test, "training": sets.fitting.training}
    named |= {"outliers": sets.fitting.outliers, "held_out": sets.fitting.held_out}
    named |= {f"{name}-ood" if name in named else name: features for name, features in sets.ood.items()}
    for name, of_set in named.items():
        if of_set is None:
            continue
        logits = torch.cat([rows.logits.float() for rows in Calibration(classifier).outputs(of_set.features)])
        arrays = {"features": of_set.features, "logits": logits.cpu(), "labels": of_set.labels}
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
