"""OOD detection and long-tailed classification metrics. All are fractions; OOD is the positive class.

A score is higher where an image looks more out-of-distribution.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from utils.errors import InputError

OOD_COLUMNS = {
    "auroc": "AUROC ↑",
    "aupr_out": "AUPR-out ↑",
    "aupr_in": "AUPR-in ↑",
    "fpr95": "FPR95 ↓",
    "fpr95_id": "FPR95-ID ↓",
}
ACCURACY_COLUMNS = {
    "all": "ACC ↑",
    "many": "many ↑",
    "medium": "medium ↑",
    "few": "few ↑",
    "macro_f1": "macro-F1 ↑",
}
OOD_METRICS = tuple(OOD_COLUMNS)


def ood_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> dict[str, float]:
    """Measures how well a score ranks OOD, (M,), above ID, (N,); raises InputError if one is not finite.

    Returns ``auroc``; ``aupr_out``, the average precision with OOD positive; ``aupr_in``, that of ID on the
    negated score; ``fpr95``, the share of ID flagged at the threshold that catches 95 % of OOD (recall
    nearest to 0.95); ``fpr95_id``, the share of OOD accepted at the threshold that keeps 95 % of ID.
    """
    scores = np.concatenate([id_scores, ood_scores]).astype(np.float64)
    if not np.isfinite(scores).all():
        raise InputError("some scores are not finite")
    is_ood = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
    return {
        "auroc": float(roc_auc_score(is_ood, scores)),
        "aupr_out": float(average_precision_score(is_ood, scores)),
        "aupr_in": float(average_precision_score(1 - is_ood, -scores)),
        "fpr95": _fpr_at_recall(is_ood, scores, 0.95),
        "fpr95_id": _fpr_at_recall(1 - is_ood, -scores, 0.95),
    }


def _fpr_at_recall(is_positive, scores, recall):
    fpr, tpr, _ = roc_curve(is_positive, scores, drop_intermediate=False)
    return float(fpr[np.argmin(np.abs(tpr - recall))])  # in a tie, at the highest threshold


def shot_groups(class_counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Splits C classes by training-set size: ``{many, medium, few}``, boolean arrays (C,).

    With at most 100 classes: many means n_c > n[int(0.34 C)], few means n_c < n[int(0.67 C)], n sorted
    largest first. With more (ImageNet-LT): many n_c > 100, few n_c < 20.
    """
    counts = np.asarray(class_counts)
    if len(counts) <= 100:
        ordered = np.sort(counts)[::-1]
        many, few = counts > ordered[int(0.34 * len(counts))], counts < ordered[int(0.67 * len(counts))]
    else:
        many, few = counts > 100, counts < 20
    return {"many": many, "medium": ~many & ~few, "few": few}


def mean_class_accuracy(accuracies: dict[str, Any]) -> float:
    return float(np.mean([a for a in accuracies["per_class"] if a is not None]))


def group_accuracies(correct: Sequence[int], total: Sequence[int], class_counts: Sequence[int]) -> dict:
    """Returns accuracies from the numbers of correct and of all images of each class.

    ``all``, the share of correct images; ``many``, ``medium`` and ``few``, the means of the per-class
    accuracies of :func:`shot_groups`; ``per_class``, a list of C. None where there are no images.
    """
    per_class = [float(c / t) if t else None for c, t in zip(correct, total, strict=True)]
    result = {"all": float(sum(correct) / sum(total)) if sum(total) else None}
    for name, members in shot_groups(class_counts).items():
        seen = [per_class[c] for c in np.flatnonzero(members) if total[c]]
        result[name] = float(np.mean(seen)) if seen else None
    return result | {"per_class": per_class}


def accuracy_by_shot(predictions: ArrayLike, labels: ArrayLike, class_counts: Sequence[int]) -> dict:
    """Returns :func:`group_accuracies` of N predicted classes, and ``macro_f1``, the mean F1 of the classes
    that are present or predicted."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    total = np.bincount(labels, minlength=len(class_counts))
    correct = np.bincount(labels[predictions == labels], minlength=len(class_counts))
    macro_f1 = float(f1_score(labels, predictions, average="macro"))
    return group_accuracies(correct, total, class_counts) | {"macro_f1": macro_f1}
