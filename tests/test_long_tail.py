import numpy as np
import pytest
import torch

from datasets.long_tail import hold_out, long_tail_counts, long_tail_indices
from utils.errors import InputError


def test_published_totals():
    ten, hundred = long_tail_counts(5000, 10, 0.01), long_tail_counts(500, 100, 0.01)
    assert ten == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(ten) == 12_406
    assert sum(hundred) == 10_847 and (hundred[0], hundred[-1]) == (500, 5)


def test_a_ratio_of_one_is_balanced():
    assert long_tail_counts(7, 4, 1.0) == [7, 7, 7, 7]


def test_a_single_class():
    assert long_tail_counts(9, 1, 0.5) == [9]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_ratio_out_of_range_names_the_flag(ratio):
    with pytest.raises(InputError, match="rho"):
        long_tail_counts(100, 10, ratio)


def test_ratio_that_empties_a_class_names_it():
    with pytest.raises(InputError, match="rho .* class 3"):
        long_tail_counts(10, 4, 0.05)


def test_indices_are_the_first_of_each_class_in_class_order():
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 2])
    indices = long_tail_indices(labels, [3, 2, 1])
    assert indices.dtype == torch.int64
    assert indices.tolist() == [1, 3, 6, 2, 5, 0]


def test_indices_against_a_plain_loop():
    labels = np.random.default_rng(0).integers(0, 10, 5000)
    counts = long_tail_counts(400, 10, 0.05)
    expected = [i for c in range(10) for i in [j for j in range(5000) if labels[j] == c][: counts[c]]]
    assert long_tail_indices(torch.from_numpy(labels), counts).tolist() == expected


def test_class_without_an_image():
    with pytest.raises(InputError, match="class 1 has no image"):
        long_tail_indices(torch.tensor([0, 0, 2]), [1, 1, 1])


def test_class_with_too_few():
    with pytest.raises(InputError, match="class 1 has 1 images.* 2"):
        long_tail_indices(torch.tensor([0, 0, 1]), [1, 2])


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, -1]])
def test_label_without_a_count(labels):
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        long_tail_indices(torch.tensor(labels), [1, 1])


def test_holding_out_takes_the_last_share_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 4 + [2])
    kept, held = hold_out(labels, 0.3)
    assert held.tolist() == [7, 8, 9, 13]
    assert sorted(kept.tolist() + held.tolist()) == list(range(15))
