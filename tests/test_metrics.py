import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from datasets.images import long_tail_counts
from utils.errors import InputError
from utils.metrics import accuracy_by_shot, group_accuracies, ood_metrics, shot_groups


def test_perfect_reversed_and_no_separation():
    perfect = ood_metrics([0, 1, 2], [3, 4, 5])
    assert perfect == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95": 0, "fpr95_id": 0}
    reverse = ood_metrics([3, 4, 5], [0, 1, 2])
    assert reverse["auroc"] == 0 and reverse["fpr95"] == reverse["fpr95_id"] == 1
    tied = ood_metrics([1, 1, 1], [1])
    assert tied == {"auroc": 0.5, "aupr_in": 0.75, "aupr_out": 0.25, "fpr95": 1, "fpr95_id": 1}


def test_by_hand_with_ties():
    # Thresholds from the top: 3 catches one OOD; 2 catches one OOD and one ID; 1 one OOD and two ID; 0 one
    # ID.
    m = ood_metrics([2, 1, 1, 0], [3, 2, 1])
    assert m["auroc"] == pytest.approx((4 + 3.5 + 2) / 12)
    assert m["aupr_out"] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    # Negated: 0 is caught first (1 ID), then 1 (2 ID, 1 OOD), then 2 (1 ID, 1 OOD).
    assert m["aupr_in"] == pytest.approx((1 * 1 + 2 * 3 / 4 + 1 * 4 / 6) / 4)
    assert m["fpr95"] == 0.75 and m["fpr95_id"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_fpr95_of_random_scores_with_ties(seed):
    rng = np.random.default_rng(seed)
    a = np.round(rng.normal(0, 1, rng.integers(2, 40)), 1)
    b = np.round(rng.normal(0.5, 1, rng.integers(2, 40)), 1)
    m = ood_metrics(a, b)
    recalls = {t: np.mean(b >= t) for t in np.r_[a, b, np.inf]}
    nearest = min(abs(r - 0.95) for r in recalls.values())
    candidates = [np.mean(a >= t) for t, r in recalls.items() if abs(abs(r - 0.95) - nearest) < 1e-12]
    assert min(abs(m["fpr95"] - c) for c in candidates) < 1e-12
    assert m["fpr95_id"] == ood_metrics(-b, -a)["fpr95"]  # the opposite direction


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(InputError):
        ood_metrics([1, float("nan")], [1])


def members(groups):
    return {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()}


def test_groups_of_cifar():
    groups = members(shot_groups(long_tail_counts(5000, 10, 0.01)))
    assert groups == {"many": [0, 1, 2], "medium": [3, 4, 5, 6], "few": [7, 8, 9]}
    counts = long_tail_counts(500, 100, 0.01)
    groups = members(shot_groups(counts))
    assert groups["many"] == [c for c in range(100) if counts[c] > counts[34]]
    assert groups["few"] == [c for c in range(100) if counts[c] < counts[67]]
    assert sorted(sum(groups.values(), [])) == list(range(100))


def test_groups_of_imagenet_and_of_a_balanced_set():
    groups = members(shot_groups([1280, 101, 100, 50, 20, 19, 5] + [60] * 200))
    assert groups == {"many": [0, 1], "medium": [2, 3, 4, *range(7, 207)], "few": [5, 6]}
    assert members(shot_groups([5] * 10)) == {"many": [], "medium": list(range(10)), "few": []}


def test_accuracies_against_scikit_learn():
    rng = np.random.default_rng(3)
    counts = long_tail_counts(5000, 10, 0.01)
    labels = np.concatenate([np.arange(10), rng.integers(0, 10, 200)])
    predictions = np.where(rng.random(210) < 0.6, labels, rng.integers(0, 10, 210))
    result = accuracy_by_shot(predictions, labels, counts)
    assert result["all"] == pytest.approx(np.mean(predictions == labels))
    assert result["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    recalls = recall_score(labels, predictions, average=None)
    for name, classes in {"many": slice(0, 3), "medium": slice(3, 7), "few": slice(7, 10)}.items():
        assert result[name] == pytest.approx(recalls[classes].mean())


def test_a_group_without_classes_or_images_is_none():
    assert accuracy_by_shot([0, 1], [0, 1], [5, 5])["many"] is None
    found = group_accuracies([1, 0, 0], [2, 1, 0], [9, 5, 2])
    assert found["few"] is None and found["per_class"] == [0.5, 0.0, None]
    assert group_accuracies([0] * 3, [0] * 3, [9, 5, 2])["all"] is None
