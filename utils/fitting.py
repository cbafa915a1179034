"""Everything fitted after training, on training images and outliers: calibrations and scores.

No function here receives a test image or an OOD set, except for auditing (``--calibration_split test``).
"""

from typing import NamedTuple

import numpy as np
import torch

from utils.calibration import CALIBRATIONS, build_calibration, fit_attention
from utils.console import say
from utils.errors import InputError
from utils.evaluation import Features, predict
from utils.metrics import class_accuracies, class_tally, ood_metrics
from utils.probe import fit_probe
from utils.scores import Training, fit_scores

STRENGTHS = (0.1, 0.25, 0.5, 1.0)  # of FC, tried by "auto"
HELD_OUT_OUTLIERS = 10  # every tenth


class TrainingSets(NamedTuple):
    training: Features
    outliers: Features | None
    held_out: Features | None
    attending: Features


def trained_statistics(checkpoint, num_classes, dim):
    """Returns the classes' von Mises-Fisher distributions from training, if they describe unit features.

    Args:
        checkpoint: from train.py, or a third-party one. num_classes: C. dim: the width D of the features.

    Returns:
        (mu, kappa), float64 (C, D) and (C,); None if the checkpoint has none, has not seen every class, or
        was trained without the contrastive term, with a head (whose embeddings are not the features), or
        without normalised embeddings.
    """
    if not isinstance(checkpoint, dict):
        return None
    args, state = checkpoint.get("args"), checkpoint.get("criterion")
    if not isinstance(args, dict) or not isinstance(state, dict) or args.get("head"):
        return None
    shapes = {"mean_direction": (num_classes, dim), "kappa": (num_classes,), "counts": (num_classes,)}
    shapes["has_previous"] = (num_classes,)
    stored = {name: state.get(f"statistics.{name}") for name in shapes}
    if any(getattr(stored[name], "shape", None) != shape for name, shape in shapes.items()):
        return None
    seen = (stored["counts"] > 0) | stored["has_previous"]
    if args.get("isac") is not True or "embeddings" in args.get("depart", []) or not bool(seen.all()):
        return None
    mu, kappa = stored["mean_direction"].double(), stored["kappa"].double()
    return (mu, kappa) if bool(torch.isfinite(mu).all() & (kappa > 0).all()) else None


def needs_outliers(names, score):
    return "fc" in names or bool({"probe", "auto"} & set(names)) or score in ("probe", "combined")


def fit_calibrations(
    names,
    classifier,
    sets,
    class_counts,
    *,
    score,
    strength=1.0,
    statistics=None,
):
    """Returns the calibrations to evaluate, each with its scores; prints how the probe and "auto" ended.

    Args:
        names: some of :data:`utils.calibration.CALIBRATIONS`, or only "auto": none, and the best of
            :func:`try_calibrations`.
        classifier: the network's; everything is computed on its device.
        training: :class:`Features` of training images.
        outlier_features: (M, D) of surrogate outliers; None, possible with "none" only, leaves out the scores
            that need them.
        class_counts: (C,) training-set sizes.
        strength: of "fc", see :func:`utils.calibration.build_calibration`.
        attending: the :class:`Features` that the attention is computed from; default: ``training``.
        statistics: see :func:`trained_statistics`.
        held_out, score: what "auto" chooses on, see :func:`try_calibrations`.

    Returns:
        (calibrations, facts): dict of name to (:class:`utils.calibration.Calibration`,
        :class:`utils.scores.FittedScores`), and plain values for the results file; its ``vmf`` says for each
        calibration where the class statistics of that score come from.

    Raises:
        InputError: ``score`` cannot be fitted.
    """
    training, outliers, held_out, attending = sets
    outlier_features = None if outliers is None else outliers.features
    attention = probe = None
    wanted = {"probe", "auto"} & {*names} or score in ("probe", "combined")
    facts = {"num_ood_samples": 0, "vmf": {}}
    if needs_outliers(names, score):
        facts["num_ood_samples"] = len(outlier_features)
    if "auto" in names:
        trials = try_calibrations(
            classifier, training, attending, outlier_features, class_counts, held_out, score, statistics
        )
        chosen = max(trials, key=quality)
        say(describe_trials(trials, chosen, len(held_out.labels), score))
        names, strength = ["none", chosen["calibration"]], chosen["fc_strength"]
        facts["auto"] = {"chosen": chosen, "trials": trials, "score": score}
    if "fc" in names:
        attention = fit_attention(classifier, attending, outlier_features, class_counts)
        facts |= {"fc_strength": strength, "num_cal": len(attending.labels)}
    if outlier_features is not None and wanted:
        fit = fit_probe(*training, outlier_features, len(class_counts), classifier.weight.device)
        probe = fit.probe
        facts["probe"] = {"iterations": fit.iterations, "gradient": fit.gradient, "converged": fit.converged}
        if fit.converged:
            say(f"the probe converged {fit.ended()}")
    calibrations = {}
    for name in (n for n in CALIBRATIONS if n in names):
        calibration = build_calibration(name, classifier, attention, probe, strength)
        of_calibration = Training(calibration, *training, statistics)
        calibrations[name] = calibration, fit_with(score, of_calibration)
        estimated = of_calibration.class_vmf() is None
        facts["vmf"][name] = "training features" if estimated else "class statistics of the checkpoint"
    return calibrations, facts


def fit_with(score, training, names=None):
    """Returns :func:`utils.scores.fit_scores`, which has to include ``score``.

    Raises:
        InputError: ``score`` cannot be fitted.
    """
    fitted = fit_scores(training, names)
    if score not in fitted.scores and not (score == "combined" and fitted.standards):
        raise InputError(f"--score {score} cannot be fitted: no class has two training images")
    return fitted


def try_calibrations(
    classifier,
    training,
    attending,
    outlier_features,
    class_counts,
    held_out,
    score="energy",
    statistics=None,
):
    """Measures none, FC at several strengths and the probe on held-out training images and outliers.

    Attention is fitted on ``attending``, probe and score on ``training``, all with nine tenths of the
    outliers; AUROC is of the other tenth against the held-out images. (The network itself was trained with
    all of the outliers.)

    Args:
        classifier, training, attending, outlier_features, class_counts, statistics: as for
            :func:`fit_calibrations`.
        held_out: :class:`utils.evaluation.Features` of ID images that were held out of training.
        score: whose AUROC it is.

    Returns:
        A list of {calibration, fc_strength, auroc, accuracy}: ``fc_strength`` is None where it is not FC,
        ``auroc`` and ``accuracy``, the mean over the classes, are fractions.

    Raises:
        InputError: ``score`` cannot be fitted.
    """
    is_held_out = torch.arange(len(outlier_features)) % HELD_OUT_OUTLIERS == 0
    held_outliers, outliers = outlier_features[is_held_out], outlier_features[~is_held_out]
    attention = fit_attention(classifier, attending, outliers, class_counts)
    probe = fit_probe(*training, outliers, len(class_counts), classifier.weight.device).probe
    trials = []
    for name, strength in (("none", None), *(("fc", s) for s in STRENGTHS), ("probe", None)):
        calibration = build_calibration(name, classifier, attention, probe, strength)
        fitted = fit_with(score, Training(calibration, *training, statistics), [score])
        of_images = predict(calibration, fitted, held_out.features)
        of_outliers = predict(calibration, fitted, held_outliers)
        auroc = ood_metrics(of_images.scores[score].numpy(), of_outliers.scores[score].numpy())["auroc"]
        tally = class_tally(of_images.predictions.numpy(), held_out.labels.numpy(), len(class_counts))
        accuracy = float(np.mean([a for a in class_accuracies(*tally) if a is not None]))
        trials.append({"calibration": name, "fc_strength": strength, "auroc": auroc, "accuracy": accuracy})
    return trials


def quality(trial):
    """Returns what "auto" maximises; the first wins a tie."""
    return trial["auroc"] + trial["accuracy"]


def describe_trials(trials, chosen, num_images, score):
    """Describes what "auto" tried and chose."""
    lines = [f"--calibration auto, on {num_images:,} held-out images: AUROC ({score}) + mean class accuracy"]
    for trial in trials:
        name = trial["calibration"] + ("" if trial["fc_strength"] is None else f" {trial['fc_strength']}")
        auroc, accuracy, both = (100 * v for v in (trial["auroc"], trial["accuracy"], quality(trial)))
        mark = "  the largest: chosen" if trial is chosen else ""
        lines.append(f"  {name:8} {auroc:6.2f} + {accuracy:6.2f} = {both:6.2f}{mark}")
    return "\n".join(lines)
