import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils import probe
from utils.errors import InputError
from utils.probe import fit_probe

C, D = 4, 7


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


def test_it_minimises_the_weighted_regularised_cross_entropy():
    """The gradient of the objective of docs/method.md, by autograd, is 0 where the fit ended."""
    features, labels, outliers = problem(0)
    fitted, facts = fit_probe(features, labels, outliers, C)
    assert facts["converged"] and facts["iterations"] > 1
    x = torch.cat([features, outliers]).double()
    deviation = features.double().std(dim=0, correction=0)
    deviation[5] = deviation.square().mean().sqrt()  # of the feature that never varies
    mean = features.double().mean(dim=0)
    v = (fitted.weight * deviation).requires_grad_()
    a = (fitted.bias + fitted.weight @ mean).requires_grad_()
    counts = torch.bincount(labels).double()
    weights = torch.cat([1 / counts[labels] / C, torch.full((len(outliers),), 1 / len(outliers))])
    weights = weights * len(x) / 2
    y = torch.cat([labels, torch.full((len(outliers),), C)])
    terms = F.cross_entropy((x - mean) / deviation @ v.T + a, y, reduction="none")
    loss = v.square().sum() / 2 + 0.1 * (weights * terms).sum()
    loss.backward()
    gradient = torch.cat([v.grad.flatten(), a.grad])
    assert gradient.abs().max() < 1e-4 * loss


@pytest.mark.parametrize("value", [1e-30, 1e-4])
def test_a_unit_that_was_active_on_one_training_image_does_not_decide(value):
    scale = 1000
    features, labels, outliers = problem(0)
    features, outliers = (torch.cat([x[:, :6], x[:, 7:]], dim=1) for x in (features, outliers))
    silent, unit = (torch.zeros(n, 1) for n in (len(outliers), len(labels)))
    unit[labels == 3] = torch.tensor([value, 0, 0])[:, None]
    with_unit = torch.cat([features, unit], dim=1)
    fitted, _ = fit_probe(scale * with_unit, labels, scale * torch.cat([outliers, silent], dim=1), C)
    alone, _ = fit_probe(features, labels, outliers, C)
    active = fitted.logits(scale * torch.cat([features, torch.ones(len(features), 1)], dim=1))
    ours, expected = (logits.log_softmax(dim=1) for logits in (active, alone.logits(features)))
    np.testing.assert_allclose(ours, expected, atol=1e-2)


def test_a_fit_that_ended_early_says_so(monkeypatch):
    monkeypatch.setattr(probe, "MAX_STEPS", 3)
    with pytest.warns(UserWarning, match="did not converge"):
        _, facts = fit_probe(*problem(0), C)
    assert not facts["converged"] and facts["iterations"] == 3


def test_what_it_cannot_be_fitted_on_is_refused():
    features, labels, outliers = problem(0)
    seen, nan = labels != 2, outliers * float("nan")
    for data, named in (
        ((features[seen], labels[seen], outliers), "class 2"),
        ((features, labels, nan), "not finite"),
    ):
        with pytest.raises(InputError, match=named):
            fit_probe(*data, C)
