"""The end of both test scripts: fits and evaluates on the features, writes the results and the detector."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.calibration import Classifier
from utils.console import say
from utils.detector import Deployment, write_detector
from utils.distributed import resolved_precision
from utils.environment import environment
from utils.evaluation import Features, evaluate
from utils.fitting import TrainingSets, fit_calibrations
from utils.report import report


class Sets(NamedTuple):
    """The features of all images of an evaluation.

    ``test``: the ID test set. ``ood``: the OOD sets by name. ``training``: all training images.
    ``attending``: the labelled images that feature calibration uses. ``outliers``: surrogate outliers, or
    None. ``held_out``: training images that ``--val_fraction`` held out, or None.
    """

    test: Features
    ood: dict[str, Features]
    training: Features
    attending: Features
    outliers: Features | None
    held_out: Features | None


def conclude(
    model: nn.Module,
    deployment: Deployment,
    names: list[str],
    sets: Sets,
    class_counts: list[int],
    about: dict[str, Any],
    progress: dict[str, int | None],
    out: Path,
    *,
    calibration_split: str,
    score: str,
    strength: float,
    tnorm: bool,
    precision: str,
    figures: str,
    device: torch.device,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fits calibrations and scores, evaluates them, prints the tables and writes results and detector.

    Args:
        model: the network. names: of the calibrations, see :func:`utils.fitting.fit_calibrations`.
        class_counts: (C,) training-set sizes.
        about: what results.json says beside the results, see :func:`utils.report.report`.
        progress: of the run, see :func:`utils.checkpoint.progress_of`.
        calibration_split: of the images for feature calibration. After "test" no detector is written.
        score: the one that tables and plots show. strength: of FC. tnorm: see
            :meth:`utils.calibration.Classifier.of`. figures: format of the plots.
        statistics: see :func:`utils.fitting.trained_statistics`.

    Raises:
        InputError: the score cannot be fitted, or a file cannot be written.
    """
    calibrations, facts = fit_calibrations(
        names,
        Classifier.of(model, tnorm),
        TrainingSets(sets.training, sets.outliers, sets.held_out, sets.attending),
        class_counts,
        score=score,
        strength=strength,
        statistics=statistics,
    )
    results, scores = evaluate(calibrations, sets.test, sets.ood, class_counts)
    split = calibration_split if "fc" in calibrations else None
    precision = resolved_precision(device, precision)
    about = about | progress | {"calibration_split": split, "class_counts": class_counts, "score": score}
    about |= {"tnorm": tnorm, "precision": precision}
    report(about | facts | results | {"environment": environment(device)}, scores, score, out, figures)
    if split == "test":
        say("no detector is written when test images were used for calibration")
        return
    write_detector(
        out,
        model,
        deployment,
        calibrations,
        sets.held_out,
        sets.training,
        auto=facts.get("auto"),
        progress=progress,
        precision=precision,
    )
