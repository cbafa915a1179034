"""An evaluation from features to files: fits, evaluates, prints the tables, writes results and detector."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.calibration import Calibration, Classifier
from utils.checkpoint import progress_of
from utils.detector import FILE, Subject, write_detector
from utils.distributed import Compute, environment, in_main, resolved_precision
from utils.errors import InputError, say
from utils.evaluation import Features, evaluate
from utils.evaluation_flags import Settings
from utils.fitting import TrainingSets, fit_calibrations, trained_statistics
from utils.flags import FIGURES
from utils.plots import plot_roc, plot_score_histograms
from utils.report import markdown, results_csv, summary, tables, title
from utils.text_files import writable_folder, write_text

PLOTS = {"scores": plot_score_histograms, "roc": plot_roc}
FEATURES = "features"  # the folder of --save_features
OUTPUTS = (FILE, "results.csv", "results.md", "results.json", FEATURES)
OUTPUTS += tuple(f"{plot}.{kind}" for plot in PLOTS for kind in FIGURES)
TEMPORARY = ".evaluation-"


class Sets(NamedTuple):
    """The features of all images of an evaluation: the ID test set, the OOD sets by name, and what is fitted
    on."""

    test: Features
    ood: dict[str, Features]
    fitting: TrainingSets

    def by_name(self) -> dict[str, Features]:
        """Returns every set under the name of its file of features."""
        own = {"test": self.test, "training": self.fitting.training}
        own |= {"outliers": self.fitting.outliers, "held_out": self.fitting.held_out}
        own = {name: features for name, features in own.items() if features is not None}
        return own | {f"{name}-ood" if name in own else name: s for name, s in self.ood.items()}


@contextlib.contextmanager
def exclusive(folder: Path, compute: Compute) -> Iterator[Path]:
    """Creates the folder of an evaluation's results, and yields it; no other evaluation can use it meanwhile.

    Raises:
        InputError: it cannot be written, or another evaluation uses it.
    """
    descriptor = in_main(compute, lambda: _lock(writable_folder(folder)))
    try:
        yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another evaluation writes to {folder}: wait for it, or choose another folder with --srp"
        ) from None
    except OSError:  # a file system without locks
        return descriptor
    for left in folder.glob(f"{TEMPORARY}*"):  # by an evaluation that was killed
        shutil.rmtree(left, ignore_errors=True)
    return descriptor


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
        folder: see :func:`exclusive`. device: where the network is.

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
    with _replaced_together(folder) as new:
        write_text(new / "results.json", json.dumps(results, indent=1) + "\n")
        write_text(new / "results.csv", results_csv(results))
        write_text(new / "results.md", markdown(results))
        if sets.ood:
            curves = {f"calibration: {name}": of[settings.score] for name, of in scores.items()}
            _draw(curves, new, settings.figures, title(results))
        if settings.save_features:
            _write_features(sets.by_name(), classifier, new / FEATURES)
        if split == "test":
            say("no detector is written when test images were used for calibration")
        else:
            write_detector(new / FILE, subject, calibrations, sets.fitting, settings, facts.get("auto"))


@contextlib.contextmanager
def _replaced_together(folder):
    """Yields a temporary folder; its files replace all outputs of an earlier evaluation at the end."""
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
            yield Path(temporary)
            for name in OUTPUTS:
                old = folder / name
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            written = [name for name in OUTPUTS if (Path(temporary) / name).exists()]
            for name in written:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise InputError(f"the results could not be written to {folder}: {error.strerror or error}") from None
    say(f"written to {folder}: {', '.join(written)}")


def _draw(curves, folder, figures, title):
    """Draws the plots; warns once if that fails, as with names that no font can show."""
    try:
        for name, plot in PLOTS.items():
            plot(curves, folder / f"{name}.{figures}", title)
    except Exception as error:
        warnings.warn(f"the plots could not be drawn: {error!r}", stacklevel=2)


def _write_features(sets, classifier, folder):
    folder.mkdir()
    for name, (features, labels) in sets.items():
        logits = torch.cat([rows.logits.float() for rows in Calibration(classifier).outputs(features)])
        arrays = {"features": features.numpy(), "logits": logits.cpu().numpy(), "labels": labels.numpy()}
        np.savez(folder / f"{name}.npz", **arrays)
