import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from utils import calibration, probe
from utils.errors import InputError
from utils.probe import fit_probe

CPU, C, D = torch.device("cpu"), 4, 7


def problem(seed, sizes=(60, 25, 9, 3), outliers=150):
    """A long tail of overlapping classes; feature 5 never varies, feature 6 has another scale."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    centres = torch.randn(C + 1, D, generator=g)
    x = torch.cat([centres[labels], centres[-1].expand(outliers, D)])
    x = x + torch.randn(x.shape, generator=g)
    x[:, 5], x[:, 6] = 2, 1000 * x[:, 6] + 500
    order = torch.randperm(len(labels), generator=g)
    return x[: len(labels)][order], labels[order], x[len(labels) :]


def wide_problem():
    """Separable classes whose 64 features are correlated: variances from 1 down to 1/4096."""
    features, labels, outliers = problem(0, (200, 60, 20, 5), 300)
    g = torch.Generator().manual_seed(1)
    mixing = torch.randn(64, 64, generator=g) / torch.arange(1, 65)[:, None]

    def widen(x):
        noise = torch.randn(len(x), 57, generator=g)
        return (torch.cat([x[:, :6], x[:, 6:] / 1000, noise], dim=1) @ mixing).relu()

    return widen(features), labels, widen(outliers)


def reference(features, labels, outliers):
    """scikit-learn's log-probabilities as a function of features."""
    x, o = features.double().numpy(), outliers.double().numpy()
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation == 0] = 1
    counts = np.bincount(labels)
    weights = np.concatenate([1 / counts[labels], np.full(len(o), C / len(o))])
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000)
    model.fit(
        (np.concatenate([x, o]) - mean) / deviation,
        np.concatenate([labels, np.full(len(o), C)]),
        sample_weight=weights * len(weights) / weights.sum(),
    )
    return lambda f: model.predict_log_proba((f.double().numpy() - mean) / deviation)


@pytest.mark.parametrize(
    "data",
    [problem(0), problem(1), problem(2, outliers=900), wide_problem()],
    ids=["seed 0", "seed 1", "many outliers", "wide"],
)
def test_it_is_scikit_learns_logistic_regression(data, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", 13)
    monkeypatch.setattr(probe, "CHUNK", 13)
    fitted, facts = fit_probe(*data, C, CPU)
    assert facts["converged"] and 1 < facts["iterations"] < 300
    elsewhere = torch.cat([data[0], data[2], 3 * data[0]])
    ours = fitted.logits(elsewhere).log_softmax(dim=1)
    np.testing.assert_allclose(ours, reference(*data)(elsewhere), atol=1e-2)


def test_a_class_counts_once_however_many_images_it_has_and_outliers_half_of_all():
    """At the optimum the biases, which are not penalised, make expected and given weights agree."""
    features, labels, outliers = problem(0)
    for copies in (1, 3):
        many = torch.cat([torch.arange(len(labels)), (labels == 0).nonzero().flatten().repeat(copies - 1)])
        counts = torch.bincount(labels[many])
        assert counts[0] == 60 * copies
        fitted, _ = fit_probe(features[many], labels[many], outliers, C, CPU)
        p = fitted.logits(torch.cat([features[many], outliers])).softmax(dim=1).numpy()
        per_image = np.concatenate(
            [1 / counts[labels[many]].numpy(), np.full(len(outliers), C / len(outliers))]
        )
        assert (per_image[:, None] * p).sum(axis=0).tolist() == pytest.approx([1, 1, 1, 1, C], abs=1e-3)


@pytest.mark.parametrize("value", [1e-30, 1e-4])
def test_a_unit_that_was_active_on_one_training_image_does_not_decide(value):
    scale = 1000
    features, labels, outliers = problem(0)
    features, outliers = (torch.cat([x[:, :6], x[:, 7:]], dim=1) for x in (features, outliers))
    silent, unit = (torch.zeros(n, 1) for n in (len(outliers), len(labels)))
    unit[labels == 3] = torch.tensor([value, 0, 0])[:, None]
    with_unit = torch.cat([features, unit], dim=1)
    fitted, _ = fit_probe(scale * with_unit, labels, scale * torch.cat([outliers, silent], dim=1), C, CPU)
    alone, _ = fit_probe(features, labels, outliers, C, CPU)
    active = fitted.logits(scale * torch.cat([features, torch.ones(len(features), 1)], dim=1))
    ours, expected = (logits.log_softmax(dim=1) for logits in (active, alone.logits(features)))
    np.testing.assert_allclose(ours, expected, atol=1e-2)


def test_its_precision_is_its_own_whatever_surrounds_it():
    data = problem(0)
    alone, _ = fit_probe(*data, C, CPU)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            surrounded, _ = fit_probe(*data, C, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(alone.weight, surrounded.weight)


def test_a_fit_that_ended_early_says_so(monkeypatch):
    monkeypatch.setattr(probe, "MAX_STEPS", 3)
    with pytest.warns(UserWarning, match="did not converge"):
        _, facts = fit_probe(*problem(0), C, CPU)
    assert not facts["converged"] and facts["iterations"] >= 4


def test_what_it_cannot_be_fitted_on_is_refused():
    features, labels, outliers = problem(0)
    seen, nan = labels != 2, outliers * float("nan")
    for data, named in (
        ((features[seen], labels[seen], outliers), "class 2"),
        ((features, labels, nan), "not finite"),
    ):
        with pytest.raises(InputError, match=named):
            fit_probe(*data, C, CPU)
