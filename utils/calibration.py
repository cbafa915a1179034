"""Calibrations: how a trained network's features become class logits.

``none`` is the unchanged network; ``fc`` is PATT's feature calibration, an attention vector over feature
dimensions; ``probe`` is a linear head fitted after training, see :mod:`utils.probe`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import InputError

CALIBRATIONS = ("none", "fc", "probe")
CHUNK = 4096  # rows of features per computation


class Classifier(NamedTuple):
    """A linear layer, float64: ``weight`` (C, D) and ``bias`` (C,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, model: torch.nn.Module, tnorm: bool = False) -> "Classifier":
        """Returns a network's last layer; with ``tnorm``, unit rows and no bias (tau-normalisation, Kang et
        al. 2020, tau = 1)."""
        weight, bias = model.linear.weight.detach().double(), model.linear.bias.detach().double()
        if tnorm:
            return cls(weight / weight.norm(dim=1, keepdim=True), torch.zeros_like(bias))
        return cls(weight, bias)

    def logits(self, features: Tensor) -> Tensor:
        """Returns z = W f + b, float64 (N, C)."""
        return features.double() @ self.weight.T + self.bias


class Outputs(NamedTuple):
    """N images under one calibration, float64: ``features`` (N, D), f, or f * A under FC; ``logits`` (N, C);
    ``probe_logits`` (N, C + 1), the outliers last, or None without a probe."""

    features: Tensor
    logits: Tensor
    probe_logits: Tensor | None


class Calibration(NamedTuple):
    """One mapping from features to class logits: ``attention`` A (D,) multiplies the features, ``classifier``
    is of the C classes, ``probe`` of C + 1."""

    classifier: Classifier
    attention: Tensor | None = None
    probe: Classifier | None = None

    def outputs(self, features: Tensor) -> Iterator[Outputs]:
        """Yields the :class:`Outputs` of features (N, D) from any device, CHUNK rows at a time, in order."""
        for rows in features.split(CHUNK):
            rows = rows.to(self.classifier.weight.device).double()
            calibrated = rows if self.attention is None else rows * self.attention
            # The probe standardises features, which undoes A, so it is the same under every calibration.
            probe_logits = None if self.probe is None else self.probe.logits(rows)
            yield Outputs(calibrated, self.classifier.logits(calibrated), probe_logits)

    def state(self) -> dict:
        probe = None if self.probe is None else self.probe._asdict()
        return {"classifier": self.classifier._asdict(), "attention": self.attention, "probe": probe}


def fit_attention(
    classifier: Classifier, training: tuple, outlier_features: Tensor, class_counts: Sequence[int]
) -> Tensor:
    """Returns :func:`attention_weight` with outliers labelled by the classifier, on its device."""
    outputs = Calibration(classifier).outputs(outlier_features)
    predicted = torch.cat([rows.logits.argmax(dim=1) for rows in outputs]).cpu()
    counts, weight = torch.as_tensor(class_counts), classifier.weight.cpu()
    attention = attention_weight(*training, outlier_features, predicted, weight, counts / counts.sum())
    return attention.to(classifier.weight.device)


def build_calibration(
    name: str, classifier: Classifier, attention=None, probe=None, strength: float = 1.0
) -> Calibration:
    """Builds one of :data:`CALIBRATIONS` from the network's classifier, A (D,) and a probe's classifier.
    ``strength`` is S of FC's A_S = 1 + S (A - 1): 1 is the paper's, 0 is none."""
    if name == "probe":
        return Calibration(Classifier(probe.weight[:-1], probe.bias[:-1]), None, probe)
    return Calibration(classifier, 1 + strength * (attention - 1) if name == "fc" else None, probe)


def class_sizes(labels: Tensor, num_classes: int) -> Tensor:
    """Returns how many labels each class has, int64 (C,); raises InputError if one has none."""
    counts = torch.bincount(labels, minlength=num_classes)
    if not bool((counts > 0).all()):
        raise InputError(f"every class needs a training image; class {int(counts.argmin())} has none")
    return counts


def attention_weight(
    features: Tensor,
    labels: Tensor,
    outlier_features: Tensor,
    outlier_labels: Tensor,
    classifier_weight: Tensor,
    prior: Tensor,
) -> Tensor:
    """Returns the attention vector A of PATT's feature calibration, float64 (D,) in [0, 2].

    S = (1/C) sum_c (1/pi_c) mean_{i: y_i = c}(f_i) * w_c,  O = (1/M) sum_j (1/pi_{yhat_j}) f_j * w_{yhat_j},
    E = S - O,  A = 2 (E - min E) / (max E - min E);  * is elementwise.

    Args:
        features: (N, D), training images; labels: int64 (N,).
        outlier_features: (M, D); outlier_labels: int64 (M,), the classes predicted for the outliers.
        classifier_weight: (C, D). prior: (C,), class frequencies of the training set.

    Raises InputError for a class without an image, or evidence that does not vary or is not finite.
    """
    weight, prior = classifier_weight.double(), prior.double()
    counts = class_sizes(labels, len(weight))
    per_class = weight / prior[:, None]
    means = _sum_by_class(features, labels, len(weight)) / counts[:, None]
    signal = (means * per_class).mean(dim=0)
    # Outliers of one predicted class share w and pi, so sums per class are enough.
    sums = _sum_by_class(outlier_features, outlier_labels, len(weight))
    evidence = signal - (sums * per_class).sum(dim=0) / len(outlier_features)
    low, high = evidence.min(), evidence.max()
    if not bool(high > low) or not bool(torch.isfinite(high - low)):
        raise InputError("the calibration evidence does not vary over the features, or is not finite")
    return 2 * (evidence - low) / (high - low)


def _sum_by_class(features, labels, num_classes):
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, of_rows in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        sums.index_add_(0, of_rows, rows.double())
    return sums
