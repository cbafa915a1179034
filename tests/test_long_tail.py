import numpy as np
import pytest
import torch

from datasets.images import ImageSet, hold_out, kept_outliers, long_tail_counts, long_tail_indices
from utils.errors import InputError


def test_published_totals():
    ten, hundred = long_tail_counts(5000, 10, 0.01), long_tail_counts(500, 100, 0.01)
    assert ten == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert (sum(ten), sum(hundred), hundred[0], hundred[-1]) == (12_406, 10_847, 500, 5)
    assert long_tail_counts(7, 4, 1.0) == [7, 7, 7, 7] and long_tail_counts(9, 1, 0.5) == [9]


def test_a_class_that_is_emptied_or_too_small_is_named():
    with pytest.raises(InputError, match="rho .* class 3"):
        long_tail_counts(10, 4, 0.05)
    with pytest.raises(InputError, match="class 1 has 1 images.* 2"):
        long_tail_indices(torch.tensor([0, 0, 1]), [1, 2])


def test_indices_are_the_first_of_each_class_in_class_order():
    labels = np.random.default_rng(0).integers(0, 10, 5000)
    counts = long_tail_counts(400, 10, 0.05)
    expected = [i for c in range(10) for i in [j for j in range(5000) if labels[j] == c][: counts[c]]]
    indices = long_tail_indices(torch.from_numpy(labels), counts)
    assert indices.dtype == torch.int64 and indices.tolist() == expected


def test_holding_out_takes_the_last_share_of_each_class():
    images = ImageSet(torch.arange(15), torch.tensor([0] * 10 + [1] * 4 + [2]))
    with pytest.warns(UserWarning, match="3 of 3 classes"):
        kept, held = hold_out(images, 0.3)
    assert held.images.tolist() == [7, 8, 9, 13]
    assert sorted(kept.images.tolist() + held.images.tolist()) == list(range(15))
    assert hold_out(images, 0) == (images, None)


def test_outliers_that_were_trained_on_are_not_held_out():
    """Nor are there more of them than the list has, which may be shorter than the one trained on."""
    cases = {(20, 0.0): 20, (20, 0.3): 18, (5, 0.3): 4, (20, 0.3, 19): 19, (20, 0.3, 50): 20}
    assert {case: kept_outliers(*case) for case in cases} == cases
