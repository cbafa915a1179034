import numpy as np
import pytest
import torch

from utils.calibration import attention_weight
from utils.errors import InputError

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


def test_against_a_double_loop():
    p = problem()
    a = attention_weight(**p)
    assert a.shape == (D,) and a.dtype == torch.float64
    np.testing.assert_allclose(a.numpy(), loop(**p), atol=1e-12)
    assert float(a.min()) == 0 and float(a.max()) == 2


def test_what_it_cannot_be_computed_from_is_refused():
    p = problem()
    kept, nan = p["labels"] != 2, p["features"].index_fill(0, torch.tensor([3]), float("nan"))
    for changed, named in (
        ({"features": p["features"][kept], "labels": p["labels"][kept]}, "class 2"),
        ({"features": nan}, "finite"),
        ({"classifier_weight": torch.zeros(C, D)}, "vary"),
    ):
        with pytest.raises(InputError, match=named):
            attention_weight(**p | changed)
