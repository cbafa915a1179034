"""From a network to rows of a results table: features once per set, then scores and metrics in many ways."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from utils.calibration import Calibration, Classifier, attention_weight
from utils.distributed import over_gpus
from utils.metrics import OOD_METRICS, accuracy_by_shot, class_accuracies, class_tally, ood_metrics
from utils.probe import fit_probe
from utils.run.weights import load_weights, network_weights
from utils.scores import Training, fit_scores


class Features(NamedTuple):
    """``features`` float32 (N, D) and ``labels`` int64 (N,), on the CPU."""

    features: torch.Tensor
    labels: torch.Tensor


def prepare_network(model, checkpoint, compute, precision):
    """Loads the checkpoint's weights, says which of its keys were left over, and returns the network on its
    device(s).

    Raises:
        InputError: see :func:`utils.run.weights.load_weights`.
    """
    extra = load_weights(model, network_weights(checkpoint))
    if extra and compute.is_main:
        names = ", ".join(repr(name[:80]) for name in extra[:9]) + (
            f" and {len(extra) - 9} more" if len(extra) > 9 else ""
        )
        print(f"the checkpoint's keys that the network does not have were left out: {names}")
    model.to(compute.device, memory_format=torch.channels_last)
    return over_gpus(model.eval(), compute, precision)


@torch.inference_mode()
def extract_features(network, batches, size, compute, mixed_precision):
    """The features of a whole set, every image once and in order.

    Args:
        batches: (normalised images, labels) of this process's share of the set, rows rank, rank + world_size,
            ...
        size: the number of images in the whole set.

    Raises:
        RuntimeError: another number of images came through.
    """
    features, labels = [], []
    for images, targets in batches:
        with mixed_precision:
            features.append(network(images).features.float().cpu())
        labels.append(targets.cpu())
    mine = (
        Features(torch.cat(features), torch.cat(labels)) if features else None
    )  # a small set may leave a process none
    if compute.world_size > 1:
        shares = [None] * compute.world_size
        dist.all_gather_object(shares, mine)
        shares = {rank: share for rank, share in enumerate(shares) if share is not None}
        whole = Features(*(torch.empty(size, *part.shape[1:], dtype=part.dtype) for part in shares[0]))
        for rank, share in shares.items():
            for target, part in zip(whole, share, strict=True):
                target[rank :: compute.world_size] = part
        mine = whole
    if len(mine.labels) != size:
        raise RuntimeError(f"{len(mine.labels)} images were evaluated of a set of {size}")
    return mine


def calibrate(classifier, training, outlier_features, class_counts):
    """The attention vector (D,) from the :class:`Features` of training images and the features of surrogate
    outliers (M, D), on the classifier's device."""
    counts, device = torch.as_tensor(class_counts), classifier.weight.device
    outputs = Calibration(classifier).outputs(outlier_features)
    predicted = torch.cat([rows.logits.argmax(dim=1) for rows in outputs]).cpu()
    weight, prior = classifier.weight.cpu(), counts / counts.sum()
    return attention_weight(*training, outlier_features, predicted, weight, prior).to(device)


def trained_statistics(checkpoint, num_classes, dim):
    """The classes' von Mises-Fisher distributions that training kept, where they are of unit features.

    Args:
        checkpoint: of train.py or a published one. num_classes: C. dim: the width D of the features.

    Returns:
        (mu, kappa), float64 (C, D) and (C,); None where the checkpoint has none, has not seen every class, or
        trained without the contrast or without normalising embeddings.
    """
    if not isinstance(checkpoint, dict):
        return None
    args, state = checkpoint.get("args"), checkpoint.get("criterion")
    if not isinstance(args, dict) or not isinstance(state, dict):
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


def fit_calibrations(
    names, classifier, training, outlier_features, class_counts, *, attending=None, statistics=None
):
    """The calibrations to evaluate, each with its scores, fitted without any test image; says how the probe's
    fit ended.

    Args:
        names: some of :data:`utils.calibration.CALIBRATIONS`.
        classifier: the network's; everything is computed on its device.
        training: :class:`Features` of training images.
        outlier_features: (M, D) of surrogate outliers; None, where "none" alone is asked for, leaves out the
            scores that need them.
        class_counts: (C,) training-set sizes.
        attending: the :class:`Features` that the attention is taken from; default: ``training``.
        statistics: see :func:`trained_statistics`.

    Returns:
        (calibrations, facts): dict of name to (:class:`utils.calibration.Calibration`,
        :class:`utils.scores.FittedScores`), and plain values for the results file.
    """
    attention = probe = None
    facts = {"vmf": "training features" if statistics is None else "class statistics of the checkpoint"}
    if "fc" in names:
        attention = calibrate(classifier, attending or training, outlier_features, class_counts)
    if outlier_features is not None:
        fit = fit_probe(*training, outlier_features, len(class_counts), classifier.weight.device)
        probe = fit.probe
        facts["probe"] = {"iterations": fit.iterations, "gradient": fit.gradient, "converged": fit.converged}
        ended = f"after {fit.iterations} iterations, largest gradient {fit.gradient:.1e}"
        if fit.converged:
            print(f"the probe converged {ended}", flush=True)
        else:
            warnings.warn(f"the probe did not converge; it ended {ended}", stacklevel=2)
    ways = {"none": Calibration(classifier, None, probe), "fc": Calibration(classifier, attention, probe)}
    if probe is not None:
        ways["probe"] = Calibration(Classifier(probe.weight[:-1], probe.bias[:-1]), None, probe)
    fitted = {
        name: (way, fit_scores(Training(way, *training, statistics)))
        for name, way in ways.items()
        if name in names
    }
    return fitted, facts


class Evaluated(NamedTuple):
    """A set under one calibration, on the CPU: ``predictions`` int64 (N,) and ``scores``, dict of name to
    float64 (N,)."""

    predictions: torch.Tensor
    scores: dict[str, torch.Tensor]


def predict(calibration, fitted, features):
    """Predicted classes and scores of a whole set, in bounded memory.

    Args:
        calibration: :class:`utils.calibration.Calibration`. fitted: its
            :class:`utils.scores.FittedScores`. features: (N, D).
    """
    predictions, values = [], []
    for outputs in calibration.outputs(features):
        predictions.append(outputs.logits.argmax(dim=1).cpu())
        values.append({name: score.cpu() for name, score in fitted(outputs).items()})
    scores = {name: torch.cat([part[name] for part in values]) for name in values[0]}
    return Evaluated(torch.cat(predictions), scores)


def evaluate(calibrations, test, ood_sets, class_counts):
    """Scores and metrics under every calibration.

    Args:
        calibrations: dict of name to (:class:`utils.calibration.Calibration`,
            :class:`utils.scores.FittedScores`).
        test: the ID test set. ood_sets: dict of name to :class:`Features` whose labels >= 0 count on the ID
            side.
        class_counts: (C,) training-set sizes.

    Returns:
        (results, scores): ``results`` has the lists ``rows`` [ood, calibration, fc, score, n_id, n_ood, the
        five metrics], ``mean`` [calibration, fc, score, the five metrics], their unweighted mean over the
        sets, and ``accuracy`` [calibration, fc, all, many, medium, few, macro_f1, per_class], all fractions,
        None where there are no images; ``fc`` says whether the calibration is "fc".
        ``scores[calibration][score][ood]`` is (id_scores, ood_scores).
    """
    rows, means, accuracies, scores = [], [], [], {}
    labels = test.labels.numpy()
    for name, (calibration, fitted) in calibrations.items():
        way = {"calibration": name, "fc": name == "fc"}
        of_test = predict(calibration, fitted, test.features)
        predictions = of_test.predictions.numpy()
        correct, total = class_tally(predictions, labels, len(class_counts))
        per_class = {"per_class": class_accuracies(correct, total)}
        accuracies.append(way | accuracy_by_shot(predictions, labels, class_counts) | per_class)
        of_sets = {ood: predict(calibration, fitted, s.features).scores for ood, s in ood_sets.items()}
        scores[name] = {}
        for score, id_scores in of_test.scores.items():
            sides, new_rows = {}, []
            for ood, features in ood_sets.items():
                set_scores, is_ood = of_sets[ood][score], features.labels < 0
                sides[ood] = torch.cat([id_scores, set_scores[~is_ood]]).numpy(), set_scores[is_ood].numpy()
                sizes = dict(zip(("n_id", "n_ood"), map(len, sides[ood]), strict=True))
                new_rows.append({"ood": ood} | way | {"score": score} | sizes | ood_metrics(*sides[ood]))
            mean = {metric: float(np.mean([row[metric] for row in new_rows])) for metric in OOD_METRICS}
            means.append(way | {"score": score} | mean)
            rows += new_rows
            scores[name][score] = sides
    return {"rows": rows, "mean": means, "accuracy": accuracies}, scores
