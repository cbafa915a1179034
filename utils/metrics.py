"""OOD detection and long-tailed classification metrics. All are fractions; OOD is the positive class.

A score is higher where an image looks more out-of-distribution.
"""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from utils.errors import InputError

# The columns of every table, in their order.
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


def ood_metrics(id_scores, ood_scores):
    """Measures how well a score ranks OOD above ID.

    Args:
        id_scores: (N,) array; ood_scores: (M,) array; higher = more OOD.

    Returns:
        Fractions. ``auroc`` (higher is better); ``aupr_out`` (higher): average precision, OOD positive;
        ``aupr_in`` (higher): average precision of ID on the negated score; ``fpr95`` (lower): share of ID
        images flagged at the threshold that catches 95 % of OOD (the one whose recall is nearest to 0.95);
        ``fpr95_id`` (lower): share of OOD images accepted at the threshold that keeps 95 % of ID, the
        opposite direction, as COCL and AdaptOD report it.

    Raises:
        ValueError: an empty set. InputError: a score that is not finite.
    """
    id_scores, ood_scores = np.asarray(id_scores, np.float64), np.asarray(ood_scores, np.float64)
    if len(id_scores) == 0 or len(ood_scores) == 0:
        raise ValueError(
            f"both sets need images: {len(id_scores)} ID and {len(ood_scores)} OOD scores were given"
        )
    scores = np.concatenate([id_scores, ood_scores])
    if not np.isfinite(scores).all():
        raise InputError("some scores are not finite")
    is_ood = np.concatenate([np.zeros(len(id_scores)), np.ones(len(ood_scores))])
    return {
        "auroc": float(roc_auc_score(is_ood, scores)),
        "aupr_out": float(average_precision_score(is_ood, scores)),
        "aupr_in": float(average_precision_score(1 - is_ood, -scores)),
        "fpr95": _fpr_at_recall(is_ood, scores, 0.95),
        "fpr95_id": _fpr_at_recall(1 - is_ood, -scores, 0.95),
    }


def _fpr_at_recall(is_positive, scores, recall):
    """Returns the false-positive rate at the nearest recall; in a tie, at the highest threshold."""
    fpr, tpr, _ = roc_curve(is_positive, scores, drop_intermediate=False)
    return float(fpr[np.argmin(np.abs(tpr - recall))])


def shot_groups(class_counts):
    """Splits the classes into many-, medium- and few-shot.

    With at most 100 classes: many means n_c > n[int(0.34 C)], few means n_c < n[int(0.67 C)], n sorted
    largest first. With more (ImageNet-LT): many n_c > 100, few n_c < 20.

    Args:
        class_counts: C training-set sizes, any order.

    Returns:
        ``{many, medium, few}``: boolean arrays (C,).
    """
    counts = np.asarray(class_counts)
    if len(counts) <= 100:
        ordered = np.sort(counts)[::-1]
        many, few = counts > ordered[int(0.34 * len(counts))], counts < ordered[int(0.67 * len(counts))]
    else:
        many, few = counts > 100, counts < 20
    return {"many": many, "medium": ~many & ~few, "few": few}


def mean_class_accuracy(accuracies):
    """Returns the mean of the ``per_class`` accuracies that :func:`group_accuracies` found, of classes with
    images."""
    return float(np.mean([a for a in accuracies["per_class"] if a is not None]))


def group_accuracies(correct, total, class_counts):
    """Returns accuracies from counts per class: ``{all, many, medium, few, per_class}``.

    ``all`` is the share of correct images; a group's value is the mean of the per-class accuracies over its
    classes that have images. None if there are no images. ``per_class`` is a list of C.

    Args:
        correct, total: (C,) counts. class_counts: (C,) training-set sizes.
    """
    per_class = [float(c / t) if t else None for c, t in zip(correct, total, strict=True)]
    result = {"all": float(sum(correct) / sum(total)) if sum(total) else None}
    for name, members in shot_groups(class_counts).items():
        seen = [per_class[c] for c in np.flatnonzero(members) if total[c]]
        result[name] = float(np.mean(seen)) if seen else None
    return result | {"per_class": per_class}


def accuracy_by_shot(predictions, labels, class_counts):
    """Returns accuracy overall and for many-, medium- and few-shot classes, and macro-averaged F1.

    Args:
        predictions, labels: int (N,). class_counts: (C,) training-set sizes.

    Returns:
        ``{all, many, medium, few, per_class, macro_f1}``, fractions, higher is better; see
        :func:`group_accuracies`.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    total = np.bincount(labels, minlength=len(class_counts))
    correct = np.bincount(labels[predictions == labels], minlength=len(class_counts))
    in_either = total + np.bincount(predictions, minlength=len(class_counts))  # 2 tp + fp + fn
    seen = in_either > 0  # a class neither present nor predicted has no F1
    macro_f1 = float(np.mean(2 * correct[seen] / in_either[seen])) if len(labels) else None
    return group_accuracies(correct, total, class_counts) | {"macro_f1": macro_f1}
