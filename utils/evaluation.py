"""From a network to rows of a results table: features once per set, then scores and metrics in many ways."""

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
    """Loads the checkpoint's weights, reports unused keys, and returns the network on its device(s)."""
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
    """Returns, in the main process, the features of a whole set of ``size`` images, every image once and in
    order; None in the others. Raises RuntimeError if there are more or fewer.

    ``batches``: (normalised images, labels) of this process's share: rows rank, rank + world_size, ...
    """
    features, labels = [], []
    if compute.is_main:
        say(f"{title}: {size:,} images", sys.stderr)
    hidden = not (compute.is_main and sys.stderr.isatty())
    with tqdm(total=size, desc=title, unit=" images", leave=False, disable=hidden) as progress:
        for images, targets in batches:
            with mixed_precision:
                features.append(network(images).features.float().cpu())
            labels.append(targets.cpu())
            progress.update(len(targets) * compute.world_size)
    # A small set may leave a process without an image.
    mine = Features(torch.cat(features), torch.cat(labels)) if features else None
    if compute.world_size > 1:
        shares = {rank: share for rank, share in enumerate(to_main(mine)) if share is not None}
        if not compute.is_main:
            return None
        mine = Features(*(torch.empty(size, *part.shape[1:], dtype=part.dtype) for part in shares[0]))
        for rank, share in shares.items():
            for target, part in zip(mine, share, strict=True):
                target[rank :: compute.world_size] = part
    if len(mine.labels) != size:
        raise RuntimeError(f"{len(mine.labels)} images were evaluated of a set of {size}")
    return mine


def predict(calibration: Calibration, fitted: FittedScores, features: Tensor) -> tuple[np.ndarray, dict]:
    """Returns predicted classes, int64 (N,), and scores by name, float64 (N,), from features (N, D)."""
    predictions, values = [], []
    for outputs in calibration.outputs(features):
        predictions.append(outputs.logits.argmax(dim=1).cpu())
        values.append({name: score.cpu() for name, score in fitted(outputs).items()})
    scores = {name: torch.cat([part[name] for part in values]).numpy() for name in values[0]}
    return torch.cat(predictions).numpy(), scores


def evaluate(
    calibrations: dict, test: Features, ood_sets: dict[str, Features], class_counts: list[int]
) -> tuple[dict[str, list], dict]:
    """Returns (results, scores) under every calibration of :func:`utils.fitting.fit_calibrations`.

    ``results`` has the lists ``rows``, of each calibration, score and OOD set, their unweighted ``mean`` over
    the sets, and ``accuracy``, of each calibration; all fractions, None where there are no images.
    ``scores[calibration][score][ood]`` is (id_scores, ood_scores). OOD images with labels >= 0 count as ID.
    """
    rows, means, accuracies, scores = [], [], [], {}
    for name, (calibration, fitted) in calibrations.items():
        columns = {"calibration": name, "fc": name == "fc"}
        predictions, of_test = predict(calibration, fitted, test.features)
        accuracies.append(columns | accuracy_by_shot(predictions, test.labels, class_counts))
        of_sets = {ood: predict(calibration, fitted, s.features)[1] for ood, s in ood_sets.items()}
        scores[name] = {}
        for score in of_test if ood_sets else ():
            sides, new_rows = {}, []
            for ood, of_set in of_sets.items():
                is_ood = ood_sets[ood].labels.numpy() < 0
                id_scores = np.concatenate([of_test[score], of_set[score][~is_ood]])
                sides[ood] = id_scores, of_set[score][is_ood]
                sizes = {"n_id": len(id_scores), "n_ood": int(is_ood.sum())}
                new_rows.append({"ood": ood} | columns | {"score": score} | sizes | ood_metrics(*sides[ood]))
            mean = {metric: float(np.mean([row[metric] for row in new_rows])) for metric in OOD_METRICS}
            means.append(columns | {"score": score} | mean)
            rows += new_rows
            scores[name][score] = sides
    return {"rows": rows, "mean": means, "accuracy": accuracies}, scores
