"""From a network to rows of a results table: features once per set, then scores and metrics in many ways.

The fitting in between is in :mod:`utils.fitting`.
"""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.calibration import Calibration
from utils.distributed import Compute, over_gpus, to_main
from utils.errors import say
from utils.metrics import OOD_METRICS, accuracy_by_shot, ood_metrics
from utils.scores import FittedScores
from utils.weights import load_weights, network_weights, some


class Features(NamedTuple):
    """``features`` float32 (N, D) and ``labels`` int64 (N,), on the CPU."""

    features: Tensor
    labels: Tensor


def prepare_network(model: nn.Module, checkpoint: Any, compute: Compute, precision: str) -> nn.Module:
    """Loads the checkpoint's weights, reports unused keys, and returns the network on its device(s).

    Raises:
        InputError: see :func:`utils.weights.load_weights`.
    """
    extra = load_weights(model, network_weights(checkpoint))
    extra = [key for key in extra if not key.startswith("head.")]  # which training alone uses
    if extra and compute.is_main:
        say(f"the checkpoint's keys that the network does not have were left out: {some(extra)}")
    model.to(compute.device, memory_format=torch.channels_last)
    return over_gpus(model.eval(), compute, precision)


@torch.inference_mode()
def extract_features(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    size: int,
    compute: Compute,
    mixed_precision: AbstractContextManager,
    title: str = "",
) -> Features | None:
    """Returns, in the main process, the features of a whole set, every image once and in order; None in the
    others.

    Args:
        batches: (normalised images, labels) of this process's share: rows rank, rank + world_size, ...
        size: the number of images in the whole set.
        title: of the progress bar, or of the line printed instead without a terminal; "" for neither.

    Raises:
        RuntimeError: the number of images is not ``size``.
    """
    features, labels = [], []
    shown, terminal = compute.is_main and title != "", sys.stderr.isatty()
    with tqdm(
        total=size, desc=title, unit=" images", leave=False, disable=not (shown and terminal)
    ) as progress:
        for images, targets in batches:
            with mixed_precision:
                features.append(network(images).features.float().cpu())
            labels.append(targets.cpu())
            progress.update(len(targets) * compute.world_size)
    if shown and not terminal:
        say(f"{title}: {size:,} images", sys.stderr)
    # A small set may leave a process without an image.
    mine = Features(torch.cat(features), torch.cat(labels)) if features else None
    if compute.world_size > 1:
        shares = {rank: share for rank, share in enumerate(to_main(mine)) if share is not None}
        if not compute.is_main:
            return None
        whole = Features(*(torch.empty(size, *part.shape[1:], dtype=part.dtype) for part in shares[0]))
        for rank, share in shares.items():
            for target, part in zip(whole, share, strict=True):
                target[rank :: compute.world_size] = part
        mine = whole
    if len(mine.labels) != size:
        raise RuntimeError(f"{len(mine.labels)} images were evaluated of a set of {size}")
    return mine


class Evaluated(NamedTuple):
    """A set under one calibration, on the CPU: ``predictions`` int64 (N,) and ``scores``, dict of name to
    float64 (N,)."""

    predictions: Tensor
    scores: dict[str, Tensor]


def predict(calibration: Calibration, fitted: FittedScores, features: Tensor) -> Evaluated:
    """Returns predicted classes and scores of a whole set from its features (N, D), in bounded memory."""
    predictions, values = [], []
    for outputs in calibration.outputs(features):
        predictions.append(outputs.logits.argmax(dim=1).cpu())
        values.append({name: score.cpu() for name, score in fitted(outputs).items()})
    scores = {name: torch.cat([part[name] for part in values]) for name in values[0]}
    return Evaluated(torch.cat(predictions), scores)


def evaluate(
    calibrations: dict[str, tuple[Calibration, FittedScores]],
    test: Features,
    ood_sets: dict[str, Features],
    class_counts: list[int],
) -> tuple[dict[str, list], dict]:
    """Returns scores and metrics under every calibration.

    Args:
        calibrations: see :func:`utils.fitting.fit_calibrations`.
        test: the ID test set. ood_sets: by name; images with labels >= 0 count on the ID side. Without any
            set, only accuracy is measured.
        class_counts: C training-set sizes.

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
        columns = {"calibration": name, "fc": name == "fc"}
        of_test = predict(calibration, fitted, test.features)
        accuracies.append(columns | accuracy_by_shot(of_test.predictions.numpy(), labels, class_counts))
        of_sets = {ood: predict(calibration, fitted, s.features).scores for ood, s in ood_sets.items()}
        scores[name] = {}
        if not ood_sets:
            continue
        for score, id_scores in of_test.scores.items():
            sides, new_rows = {}, []
            for ood, features in ood_sets.items():
                set_scores, is_ood = of_sets[ood][score], features.labels < 0
                sides[ood] = torch.cat([id_scores, set_scores[~is_ood]]).numpy(), set_scores[is_ood].numpy()
                sizes = dict(zip(("n_id", "n_ood"), map(len, sides[ood]), strict=True))
                new_rows.append({"ood": ood} | columns | {"score": score} | sizes | ood_metrics(*sides[ood]))
            mean = {metric: float(np.mean([row[metric] for row in new_rows])) for metric in OOD_METRICS}
            means.append(columns | {"score": score} | mean)
            rows += new_rows
            scores[name][score] = sides
    return {"rows": rows, "mean": means, "accuracy": accuracies}, scores
