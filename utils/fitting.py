"""Everything fitted after training, on training images and outliers: calibrations and scores.

No function here receives a test image or an OOD set, except for auditing (``--calibration_split test``).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from utils.calibration import CALIBRATIONS, Calibration, Classifier, build_calibration, fit_attention
from utils.checkpoint import stored_arguments
from utils.errors import InputError, say
from utils.evaluation import Features, predict
from utils.metrics import accuracy_by_shot, mean_class_accuracy, ood_metrics
from utils.probe import fit_probe
from utils.scores import FittedScores, Training, fit_scores

STRENGTHS = (0.1, 0.25, 0.5, 1.0)  # of FC, tried by "auto"
DIGITS = 4  # candidates of "auto" whose quality is equal to so many digits tie


class TrainingSets(NamedTuple):
    """What calibrations and scores are fitted on, and what "auto" judges them by, if it was held out;
    ``attending`` and ``attending_outliers``: those of FC's attention."""

    training: Features
    outliers: Features | None
    held_out: Features | None
    held_outliers: Features | None
    attending: Features
    attending_outliers: Features | None


def trained_statistics(checkpoint: Any, num_classes: int, dim: int) -> tuple[Tensor, Tensor] | None:
    """Returns the classes' von Mises-Fisher distributions from training, mu (C, D) and kappa (C,), float64;
    None if the checkpoint has none, has not seen every class, or was trained without the contrastive term,
    with a head (whose embeddings are not the features), or without normalised embeddings.
    """
    args, state = stored_arguments(checkpoint), checkpoint.get("criterion")
    if not state or not args.get("isac") or args.get("head") or "embeddings" in args.get("depart", []):
        return None
    seen = (state["statistics.counts"] > 0) | state["statistics.has_previous"]
    mu, kappa = (state[f"statistics.{name}"].double() for name in ("mean_direction", "kappa"))
    return (mu, kappa) if mu.shape == (num_classes, dim) and bool(seen.all()) else None


def needs_probe(names: Iterable[str], score: str) -> bool:
    return bool({"probe", "auto"} & set(names)) or score in ("probe", "combined")


def needs_outliers(names: Iterable[str], score: str) -> bool:
    """Returns whether outliers are needed for these calibrations, or for the score asked for."""
    return "fc" in names or needs_probe(names, score)


def fit_calibrations(
    names: Sequence[str],
    classifier: Classifier,
    sets: TrainingSets,
    class_counts: Sequence[int],
    score: str,
    strength: float = 1.0,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[dict[str, tuple[Calibration, FittedScores]], dict[str, Any]]:
    """Returns the calibrations to evaluate, each with its scores, and facts for the results file; prints what
    "auto" tried. Raises InputError if ``score``, by which "auto" is judged, cannot be fitted.

    ``names``: some of :data:`utils.calibration.CALIBRATIONS`, or only "auto". ``strength``: of "fc".
    ``statistics``: see :func:`trained_statistics`. Everything is computed on the classifier's device.
    """
    attention = probe = None
    num_outliers = len(sets.outliers.features) if needs_outliers(names, score) else 0
    facts, with_probe = {"num_ood_samples": num_outliers, "vmf": {}}, needs_probe(names, score)
    if {"auto", "fc"} & set(names):
        attention = fit_attention(classifier, sets.attending, sets.attending_outliers.features, class_counts)
    if with_probe:
        probe, facts["probe"] = fit_probe(*sets.training, sets.outliers.features, len(class_counts))
        probe = Classifier(*(part.to(classifier.weight.device) for part in probe))
    build = partial(build_calibration, classifier=classifier, attention=attention, probe=probe)
    if "auto" in names:
        trials = try_calibrations(build, sets, class_counts, score, statistics)
        best = [trial for trial in trials if quality(trial) == max(map(quality, trials))]
        chosen = best[0]  # the simplest
        say(f"--calibration auto, on held-out images: AUROC ({score}) + mean class accuracy")
        for trial in trials:
            name = " ".join(str(trial[key]) for key in ("calibration", "fc_strength") if trial[key])
            auroc, accuracy, both = (100 * v for v in (trial["auroc"], trial["accuracy"], quality(trial)))
            mark = "  chosen" if trial is chosen else ""
            say(f"  {name:8} {auroc:6.2f} + {accuracy:6.2f} = {both:6.2f}{mark}")
        if len(best) > 1:
            say(f"  {len(best)} tie: the simplest of them is chosen")
        names, strength = ["none", chosen["calibration"]], chosen["fc_strength"]
        facts["auto"] = {"chosen": chosen, "trials": trials, "score": score}
    if "fc" in names:
        facts |= {"fc_strength": strength, "num_cal": len(sets.attending.labels)}
    calibrations = {}
    for name in (n for n in CALIBRATIONS if n in names):
        calibration = build(name, strength=strength)
        training = Training(calibration, *sets.training, statistics)
        calibrations[name] = calibration, fit_with(score, training)
        kept = training.usable_statistics() is not None
        facts["vmf"][name] = "class statistics of the checkpoint" if kept else "training features"
    return calibrations, facts


def fit_with(score: str, training: Training, names: Iterable[str] | None = None) -> FittedScores:
    fitted = fit_scores(training, names)
    if score not in fitted.scores and not (score == "combined" and fitted.standards):
        raise InputError(f"--score {score} cannot be fitted: no class has training images that differ")
    return fitted


def try_calibrations(
    build: Callable[..., Calibration],
    sets: TrainingSets,
    class_counts: Sequence[int],
    score: str,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Measures none, FC at several strengths and the probe, as ``build(name, strength=)`` makes them, on
    held-out images and outliers. Returns a list of {calibration, fc_strength, auroc, accuracy}:
    ``fc_strength`` is None where it is not FC, ``accuracy`` the mean over the classes."""
    trials = []
    for name, strength in (("none", None), *(("fc", s) for s in STRENGTHS), ("probe", None)):
        calibration = build(name, strength=strength)
        fitted = fit_with(score, Training(calibration, *sets.training, statistics), [score])
        predictions, of_images = predict(calibration, fitted, sets.held_out.features)
        _, of_outliers = predict(calibration, fitted, sets.held_outliers.features)
        auroc = ood_metrics(of_images[score], of_outliers[score])["auroc"]
        accuracy = mean_class_accuracy(accuracy_by_shot(predictions, sets.held_out.labels, class_counts))
        trials.append({"calibration": name, "fc_strength": strength, "auroc": auroc, "accuracy": accuracy})
    return trials


def quality(trial: dict[str, Any]) -> float:
    return round(trial["auroc"] + trial["accuracy"], DIGITS)
