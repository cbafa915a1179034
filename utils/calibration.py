"""Feature calibration (FC): an attention vector over feature dimensions."""

import torch

from utils.errors import InputError


def attention_weight(features, labels, outlier_features, outlier_labels, classifier_weight, prior):
    """The attention vector A of PATT's feature calibration, from training images and surrogate outliers
    alone.

    S = (1/C) sum_c (1/pi_c) mean_{i: y_i = c}(f_i) * w_c,  O = (1/M) sum_j (1/pi_{yhat_j}) f_j * w_{yhat_j},
    E = S - O,  A = 2 (E - min E) / (max E - min E);  * is elementwise.

    Args:
        features: (N, D), training images; labels: int64 (N,).
        outlier_features: (M, D); outlier_labels: int64 (M,), the classes that the network predicts for the
            outliers.
        classifier_weight: (C, D).
        prior: (C,), class frequencies of the training set.

    Returns:
        (D,) in [0, 2], float64.

    Raises:
        InputError: a class without an image, no outlier, or evidence that does not vary or is not finite.
    """
    weight, prior = classifier_weight.double(), prior.double()
    sums, counts = _sum_by_class(features, labels, len(weight))
    if len(outlier_features) == 0:
        raise InputError("calibration needs at least one outlier")
    if not bool((counts > 0).all()):
        raise InputError(f"calibration needs images of every class; class {int(counts.argmin())} has none")
    per_class = weight / prior[:, None]
    signal = (sums / counts[:, None] * per_class).mean(dim=0)
    # The outliers' terms share w and pi within a predicted class, so that class sums are enough.
    outlier_sums, _ = _sum_by_class(outlier_features, outlier_labels, len(weight))
    outlier = (outlier_sums * per_class).sum(dim=0) / len(outlier_features)
    evidence = signal - outlier
    low, high = evidence.min(), evidence.max()
    if not bool(high > low) or not bool(torch.isfinite(high - low)):
        raise InputError(
            "the calibration evidence does not vary over the feature dimensions, or is not finite"
        )
    return 2 * (evidence - low) / (high - low)


def _sum_by_class(features, labels, num_classes):
    """Sums (C, D) and counts (C,), float64."""
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    return sums, torch.bincount(labels, minlength=num_classes).double()
