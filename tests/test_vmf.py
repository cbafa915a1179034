import mpmath
import numpy as np
import pytest
import torch

from utils.vmf import KAPPA_MAX, KAPPA_MIN, ClassVMF, log_iv_and_ratio

ORDERS = (0.5, 1, 3.5, 7, 14.5, 15, 15.5, 31, 63, 127, 255, 511, 1023)
POINTS = np.logspace(-3, 5, 17)


def exact_log_normaliser(dim, kappa):
    """log C_p(kappa) of the vMF density, in arbitrary precision."""
    with mpmath.workdps(40):
        half = mpmath.mpf(dim) / 2
        if kappa == 0:
            return mpmath.log(mpmath.gamma(half) / (2 * mpmath.pi**half))
        kappa = mpmath.mpf(float(kappa))
        return mpmath.log(kappa ** (half - 1) / (2 * mpmath.pi) ** half / mpmath.besseli(half - 1, kappa))


def on_sphere(n, dim, seed=0):
    x = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def fitted(num_classes, dim, schedule="running"):
    """A model that has seen 60 embeddings around random centres."""
    labels = torch.arange(60) % num_classes
    embeddings = on_sphere(num_classes, dim)[labels] + on_sphere(60, dim, seed=1)
    model = ClassVMF(num_classes, dim, schedule)
    model.update(torch.nn.functional.normalize(embeddings, dim=1), labels)
    return model


# --- Bessel functions


@pytest.mark.parametrize("order", ORDERS)
def test_log_iv_and_ratio_against_arbitrary_precision(order):
    log_i, ratio = log_iv_and_ratio(order, torch.from_numpy(POINTS))
    assert log_i.dtype == torch.float64 and ((ratio > 0) & (ratio < 1)).all()
    for x, mine, quotient in zip(POINTS, log_i.tolist(), ratio.tolist(), strict=True):
        with mpmath.workdps(40):
            exact, following = (mpmath.besseli(order + i, mpmath.mpf(float(x))) for i in (0, 1))
            assert abs(mine - mpmath.log(exact)) < 1e-9, x
            assert abs(quotient * exact / following - 1) < 1e-9, x


# --- the log moment generating function


@pytest.mark.parametrize("dim,temperature", [(2, 1.0), (3, 0.3), (16, 0.1), (512, 0.1)])
def test_log_mgf_against_the_formula_element_by_element(dim, temperature):
    model = fitted(4, dim)
    embeddings = 1.7 * on_sphere(3, dim, seed=4)  # not on the sphere, as the authors' release has them
    mine = model.log_mgf(embeddings, temperature)
    assert mine.shape == (3, 4) and mine.dtype == torch.float64
    for i, e in enumerate(embeddings.numpy()):
        for c in range(4):
            kappa, mu = float(model.kappa[c]), model.mean_direction[c].numpy()
            k = np.linalg.norm(kappa * mu + e / temperature)
            expected = exact_log_normaliser(dim, kappa) - exact_log_normaliser(dim, k)
            assert float(mine[i, c]) == pytest.approx(float(expected), abs=1e-8)


def test_log_mgf_is_finite_where_the_two_vectors_cancel():
    model, temperature = fitted(1, 8), 0.1
    e = (-model.kappa[0] * temperature * model.mean_direction[0])[None].requires_grad_()
    value = model.log_mgf(e, temperature)
    expected = exact_log_normaliser(8, float(model.kappa[0])) - exact_log_normaliser(8, 0)
    assert float(value.detach()) == pytest.approx(float(expected), abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(value.sum(), e)[0]).all()


# --- class statistics


def loop_statistics(batches, num_classes, initial):
    """Mean embedding of each class in plain words; ``initial`` where a class has none."""
    result = initial.clone()
    for c in range(num_classes):
        members = [embeddings[labels == c] for embeddings, labels in batches]
        if sum(map(len, members)):
            result[c] = torch.cat(members).mean(dim=0)
    return result


def check_against(model, means):
    resultant = means.norm(dim=1)
    kappa = model.dim * resultant / (1 - resultant**2).clamp(min=1e-12)  # one image has R = 1
    torch.testing.assert_close(model.mean_direction, means / resultant[:, None], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.kappa, kappa.clamp(max=KAPPA_MAX), rtol=1e-9, atol=0)


def random_batches(count, classes, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (on_sphere(8, dim, seed=100 * seed + i), torch.randint(classes, (8,), generator=generator))
        for i in range(count)
    ]


@pytest.mark.parametrize("schedule", ["epoch", "running"])
@pytest.mark.parametrize("classes", [4, 20])  # fewer and more than images in a batch
def test_statistics_over_several_epochs_against_a_plain_loop(schedule, classes):
    dim = 6
    model = ClassVMF(classes, dim, schedule)
    served = 0.9 * model.mean_direction.clone()
    done, has_previous = [], torch.zeros(classes, dtype=torch.bool)
    # Class 3 is unseen in the first epoch; class 0 is missing from the second one, which keeps using
    # its last average.
    for epoch, shown in enumerate([(0, 3), (1, 4), (0, 4)]):
        model.start_epoch()
        if schedule == "epoch":
            served = loop_statistics(done, classes, served)
            has_previous |= torch.tensor([any((y == c).any() for _, y in done) for c in range(classes)])
            done = []
        for embeddings, labels in random_batches(3, shown[1] - shown[0], dim, seed=epoch + 1):
            batch = (embeddings, labels + shown[0])
            model.update(*batch)
            done.append(batch)
            collected = loop_statistics(done, classes, served)
            check_against(model, torch.where(has_previous[:, None], served, collected))


def test_kappa_is_kept_within_its_bounds():
    model = ClassVMF(3, 4, "running")
    opposite = on_sphere(1, 4)
    model.update(torch.cat([opposite, -opposite, opposite, 2 * opposite]), torch.tensor([0, 0, 1, 2]))
    assert model.kappa.tolist() == [KAPPA_MIN, KAPPA_MAX, KAPPA_MAX]
    assert torch.isfinite(model.log_mgf(on_sphere(3, 4), 0.1)).all()
