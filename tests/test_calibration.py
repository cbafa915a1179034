import numpy as np
import pytest
import torch

from utils.calibration import attention_weight

C, D, N, M = 4, 7, 30, 21


def problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(C), torch.randint(C, (N - C,), generator=g)])
    return dict(
        features=torch.rand(N, D, generator=g),
        labels=labels,
        outlier_features=torch.rand(M, D, generator=g),
        outlier_labels=torch.randint(C, (M,), generator=g),
        classifier_weight=torch.randn(C, D, generator=g),
        prior=torch.tensor([0.6, 0.25, 0.1, 0.05]),
    )


def loop(features, labels, outlier_features, outlier_labels, classifier_weight, prior):
    """The equations of the method, one image and one class at a time."""
    f, o, w, pi = (x.double().numpy() for x in (features, outlier_features, classifier_weight, prior))
    signal, outlier = np.zeros(D), np.zeros(D)
    for c in range(C):
        members = [f[i] for i in range(len(f)) if int(labels[i]) == c]
        signal += sum(members) / len(members) * w[c] / pi[c] / C
    for j in range(len(o)):
        y = int(outlier_labels[j])
        outlier += o[j] * w[y] / pi[y] / len(o)
    e = signal - outlier
    return 2 * (e - e.min()) / (e.max() - e.min())


@pytest.mark.parametrize("seed", range(5))
def test_against_a_double_loop(seed):
    p = problem(seed)
    a = attention_weight(**p)
    assert a.shape == (D,) and a.dtype == torch.float64
    np.testing.assert_allclose(a.numpy(), loop(**p), atol=1e-12)


def test_range_and_ends():
    a = attention_weight(**problem())
    assert float(a.min()) == 0 and float(a.max()) == 2


def test_by_hand():
    # S = mean(f) * w / pi of one class = (1, 2, 3); O = f * w / pi = (1, 0, 0); E = (0, 2, 3)
    one = torch.ones(1, dtype=torch.float64)
    a = attention_weight(
        torch.tensor([[0.0, 2.0, 2.0], [2.0, 2.0, 4.0]]),
        torch.tensor([0, 0]),
        torch.tensor([[1.0, 0.0, 0.0]]),
        torch.tensor([0]),
        torch.ones(1, 3),
        one,
    )
    assert a.tolist() == pytest.approx([0, 4 / 3, 2])


def test_the_order_and_repetition_of_images_do_not_matter():
    p = problem()
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1)).repeat(2)
    shuffled = p | {"features": p["features"][rows], "labels": p["labels"][rows]}
    assert torch.allclose(attention_weight(**p), attention_weight(**shuffled), atol=1e-12)


def test_scaling_every_feature_or_the_classifier_changes_nothing():
    p = problem()
    scaled = p | {"features": 10 * p["features"], "outlier_features": 10 * p["outlier_features"]}
    heavier = p | {"classifier_weight": 3 * p["classifier_weight"]}
    for other in (scaled, heavier):
        assert torch.allclose(attention_weight(**p), attention_weight(**other), atol=1e-5)


def test_a_class_counts_once_however_many_images_it_has():
    """Class-balanced: further copies of one class's images leave its mean, and so the result, as they are."""
    p = problem()
    rows = torch.cat([torch.arange(N), (p["labels"] == 0).nonzero().flatten().repeat(9)])
    more = p | {"features": p["features"][rows], "labels": p["labels"][rows]}
    assert torch.allclose(attention_weight(**p), attention_weight(**more), atol=1e-12)


def test_it_does_not_overflow_over_many_images():
    p = problem()
    many = p | {"features": p["features"].repeat(5000, 1), "labels": p["labels"].repeat(5000)}
    assert torch.allclose(attention_weight(**p), attention_weight(**many), atol=1e-9)


def test_a_class_without_an_image_is_an_error():
    p = problem()
    kept = p["labels"] != 2
    with pytest.raises(ValueError, match="class 2"):
        attention_weight(**p | {"features": p["features"][kept], "labels": p["labels"][kept]})


def test_no_outlier_is_an_error():
    with pytest.raises(ValueError, match="outlier"):
        attention_weight(
            **problem() | {"outlier_features": torch.zeros(0, D), "outlier_labels": torch.zeros(0).long()}
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error(value):
    p = problem()
    p["features"][3, 2] = value
    with pytest.raises(ValueError, match="finite"):
        attention_weight(**p)


def test_evidence_that_does_not_vary_is_an_error():
    p = problem()
    with pytest.raises(ValueError, match="vary"):
        attention_weight(**p | {"classifier_weight": torch.zeros(C, D)})
