"""Everything fitted after training, on training images and outliers: calibrations and scores.

No function here receives a test image or an OOD set, except for auditing (``--calibration_split test``).
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.calibration import CALIBRATIONS, Calibration, Classifier, build_calibration, fit_attention
from utils.errors import InputError, say
from utils.evaluation import Features, predict
from utils.metrics import accuracy_by_shot, mean_class_accuracy, ood_metrics
from utils.probe import ProbeFit, fit_probe
from utils.scores import FittedScores, Training, fit_scores

STRENGTHS = (0.1, 0.25, 0.5, 1.0)  # of FC, tried by "auto"
HELD_OUT_OUTLIERS = 10  # every tenth
DIGITS = 4  # candidates of "auto" whose quality is equal to so many digits tie

Statistics = tuple[Tensor, Tensor]


class TrainingSets(NamedTuple):
    """What calibrations and scores are fitted on.

    ``training``: all training images. ``outliers``: surrogate outliers, whose labels do not count, or None.
    ``held_out``: training images that ``--val_fraction`` held out, or None. ``attending``: the labelled
    images from which FC's attention is computed.
    """

    training: Features
    outliers: Features | None
    held_out: Features | None
    attending: Features


def trained_statistics(checkpoint: Any, num_classes: int, dim: int) -> Statistics | None:
    """Returns the classes' von Mises-Fisher distributions from training, if they describe unit features.

    Args:
        checkpoint: from train.py, or a third-party one. num_classes: C. dim: the width D of the features.

    Returns:
        (mu, kappa), float64 (C, D) and (C,); None if the checkpoint has none, has not seen every class, or
        was trained without the contrastive term, with a head (whose embeddings are not the features), or
        without normalised embeddings.
    """
    args, state = (checkpoint.get(part) for part in ("args", "criterion"))
    if not isinstance(args, dict) or not isinstance(state, dict):
        return None
    if not args.get("isac") or args.get("head") or "embeddings" in args.get("depart", []):
        return None
    seen = (state["statistics.counts"] > 0) | state["statistics.has_previous"]
    mu, kappa = (state[f"statistics.{name}"].double() for name in ("mean_direction", "kappa"))
    return (mu, kappa) if mu.shape == (num_classes, dim) and bool(seen.all()) else None


def needs_probe(names: Iterable[str], score: str) -> bool:
    """Returns whether the probe has to be fitted for these calibrations, or for the score asked for."""
    return bool({"probe", "auto"} & set(names)) or score in ("probe", "combined")


def needs_outliers(names: Iterable[str], score: str) -> bool:
    """Returns whether outliers are needed for these calibrations, or for the score asked for."""
    return "fc" in names or needs_probe(names, score)


def fit_calibrations(
    names: Sequence[str],
    classifier: Classifier,
    sets: TrainingSets,
    class_counts: Sequence[int],
    *,
    score: str,
    strength: float = 1.0,
    statistics: Statistics | None = None,
) -> tuple[dict[str, tuple[Calibration, FittedScores]], dict[str, Any]]:
    """Returns the calibrations to evaluate, each with its scores; prints how the probe and "auto" ended.

    Args:
        names: some of :data:`utils.calibration.CALIBRATIONS`, or only "auto": none, and the best of
            :func:`try_calibrations`.
        classifier: the network's; everything is computed on its device.
        class_counts: (C,) training-set sizes.
        score: the one that tables show and "auto" is judged by.
        strength: of "fc", see :func:`utils.calibration.build_calibration`.
        statistics: see :func:`trained_statistics`.

    Returns:
        (calibrations, facts): dict of name to calibration and scores, and plain values for the results file.
        ``num_ood_samples`` and, under FC, ``num_cal`` are the numbers of outliers and of calibration images
        used; ``vmf`` says for each calibration where the class statistics of that score come from.

    Raises:
        InputError: ``score`` cannot be fitted, or there are no outliers where they are needed.
    """
    attention = probe = None
    facts: dict[str, Any] = {"num_ood_samples": 0, "vmf": {}}
    if needs_outliers(names, score):
        if sets.outliers is None:
            raise InputError(f"--calibration {' '.join(names)} with --score {score} needs outliers")
        facts["num_ood_samples"] = len(sets.outliers.features)
    with_probe = needs_probe(names, score)
    if "auto" in names:
        trials = try_calibrations(classifier, sets, class_counts, score, statistics)
        chosen = best(trials)[0]
        say(describe_trials(trials, len(sets.held_out.labels), score))
        names, strength = ["none", chosen["calibration"]], chosen["fc_strength"]
        facts["auto"] = {"chosen": chosen, "trials": trials, "score": score}
    if "fc" in names:
        attention = fit_attention(classifier, sets.attending, sets.outliers.features, class_counts)
        facts |= {"fc_strength": strength, "num_cal": len(sets.attending.labels)}
    if with_probe:
        fit = probe_of(classifier, sets.training, sets.outliers.features)
        probe = fit.probe
        facts["probe"] = {"iterations": fit.iterations, "gradient": fit.gradient, "converged": fit.converged}
        if fit.converged:
            say(f"the probe converged {fit.ended()}")
    calibrations = {}
    for name in (n for n in CALIBRATIONS if n in names):
        calibration = build_calibration(name, classifier, attention, probe, strength)
        of_calibration = Training(calibration, *sets.training, statistics)
        calibrations[name] = calibration, fit_with(score, of_calibration)
        estimated = of_calibration.class_vmf() is None
        facts["vmf"][name] = "training features" if estimated else "class statistics of the checkpoint"
    return calibrations, facts


def probe_of(classifier: Classifier, training: Features, outliers: Tensor) -> ProbeFit:
    """Fits the probe on the classifier's device and says so: it can take minutes."""
    say(f"fitting the probe on {len(training.labels):,} images and {len(outliers):,} outliers", sys.stderr)
    return fit_probe(*training, outliers, len(classifier.bias), classifier.bias.device)


def fit_with(score: str, training: Training, names: Iterable[str] | None = None) -> FittedScores:
    """Returns :func:`utils.scores.fit_scores`, which has to include ``score``.

    Raises:
        InputError: ``score`` cannot be fitted.
    """
    fitted = fit_scores(training, names)
    if score not in fitted.scores and not (score == "combined" and fitted.standards):
        raise InputError(f"--score {score} cannot be fitted: no class has two training images")
    return fitted


def try_calibrations(
    classifier: Classifier,
    sets: TrainingSets,
    class_counts: Sequence[int],
    score: str,
    statistics: Statistics | None = None,
) -> list[dict[str, Any]]:
    """Measures none, FC at several strengths and the probe on held-out training images and outliers.

    Attention, probe and score are fitted with nine tenths of the outliers; AUROC is of the other tenth
    against the held-out images. (The network itself was trained with all of the outliers.) Arguments are
    those of :func:`fit_calibrations`.

    Returns:
        A list of {calibration, fc_strength, auroc, accuracy}: ``fc_strength`` is None where it is not FC,
        ``auroc`` and ``accuracy``, the mean over the classes, are fractions.

    Raises:
        InputError: ``score`` cannot be fitted.
    """
    is_held_out = torch.arange(len(sets.outliers.features)) % HELD_OUT_OUTLIERS == 0
    held_outliers, outliers = sets.outliers.features[is_held_out], sets.outliers.features[~is_held_out]
    attention = fit_attention(classifier, sets.attending, outliers, class_counts)
    probe = probe_of(classifier, sets.training, outliers).probe
    trials = []
    for name, strength in (("none", None), *(("fc", s) for s in STRENGTHS), ("probe", None)):
        calibration = build_calibration(name, classifier, attention, probe, strength)
        fitted = fit_with(score, Training(calibration, *sets.training, statistics), [score])
        of_images = predict(calibration, fitted, sets.held_out.features)
        of_outliers = predict(calibration, fitted, held_outliers)
        auroc = ood_metrics(of_images.scores[score].numpy(), of_outliers.scores[score].numpy())["auroc"]
        accuracies = accuracy_by_shot(of_images.predictions, sets.held_out.labels, class_counts)
        accuracy = mean_class_accuracy(accuracies)
        trials.append({"calibration": name, "fc_strength": strength, "auroc": auroc, "accuracy": accuracy})
    return trials


def quality(trial: dict[str, Any]) -> float:
    """Returns what "auto" maximises."""
    return round(trial["auroc"] + trial["accuracy"], DIGITS)


def best(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the trials of the highest quality; the first, which is the simplest, is chosen."""
    return [trial for trial in trials if quality(trial) == max(map(quality, trials))]


def describe_trials(trials: list[dict[str, Any]], num_images: int, score: str) -> str:
    """Describes what "auto" tried and chose."""
    lines = [f"--calibration auto, on {num_images:,} held-out images: AUROC ({score}) + mean class accuracy"]
    chosen, *ties = best(trials)
    for trial in trials:
        name = trial["calibration"] + ("" if trial["fc_strength"] is None else f" {trial['fc_strength']}")
        auroc, accuracy, both = (100 * v for v in (trial["auroc"], trial["accuracy"], quality(trial)))
        mark = ""
        if trial is chosen:
            mark = f"  chosen: the simplest of {1 + len(ties)} that tie" if ties else "  chosen: the largest"
        elif trial in ties:
            mark = "  ties"
        lines.append(f"  {name:8} {auroc:6.2f} + {accuracy:6.2f} = {both:6.2f}{mark}")
    return "\n".join(lines)
