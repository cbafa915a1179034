"""The probe: a linear head fitted after training on frozen features, with the surrogate outliers as one more
class: classifier re-training (cRT, Kang et al., ICLR 2020) by multinomial logistic regression."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from utils.calibration import CHUNK, Classifier, class_sizes, exact_products
from utils.errors import InputError, say

INVERSE_REGULARISATION = 0.1  # scikit-learn's C
TOLERANCE = 3e-6  # then log-probabilities are within 0.01 of the optimum's
COARSE = 1e-3  # tolerance of the first fit, on few outliers
CONSTANT = 1e-6  # a feature hardly varies if its variance is below this share of the mean variance
CURVATURE = 0.3  # of the loss, as a share of that where all predictions are the class weights
COVARIANCE_ROWS = 20_000  # enough to scale the steps by
MAX_STEPS = 1000
HISTORY = 10  # of L-BFGS
TRIALS = 20  # of a step's length


class Rows(NamedTuple):
    """``x`` float32 (N, D + 1), standardised features and a 1; ``weights`` float32 (N,), whose sum is 1."""

    x: Tensor
    labels: Tensor
    weights: Tensor

    def gradient(self, parameters: Tensor) -> Tensor:
        """Returns the gradient of the weighted cross-entropy by weights and, in the last column, biases,
        float64 (C + 1, D + 1), from products in float32."""
        total, single = torch.zeros_like(parameters), parameters.float()
        for x, labels, weights in zip(*(part.split(CHUNK) for part in self), strict=True):
            residual = (single @ x.T).softmax(dim=0)
            residual[labels, torch.arange(len(labels), device=x.device)] -= 1
            total += residual.mul_(weights) @ x
        return total


def fit_probe(
    features: Tensor, labels: Tensor, outlier_features: Tensor, num_classes: int, device: torch.device
) -> tuple[Classifier, dict[str, Any]]:
    """Minimises scikit-learn's objective for ``LogisticRegression(C=0.1)``, (1/2) ||W||^2 + C sum_i w_i CE_i,
    on ``device``, by L-BFGS. Warns if it did not converge.

    Features are standardised by mean and deviation over the training images. All C classes have the same
    total weight, and the outliers half of the total; the mean weight is 1, as in scikit-learn.

    Takes features (N, D) and labels int64 (N,) of training images, and outlier features (M, D). Returns the
    probe, of C + 1 classes, the outliers last, on unstandardised features, and facts: ``iterations``, the
    length of the ``gradient``, in units in which the curvature is about 1, and whether it ``converged``.
    Raises InputError for a class without an image, or features that are not finite.
    """
    say(f"fitting the probe on {len(labels):,} images and {len(outlier_features):,} outliers", sys.stderr)
    counts = class_sizes(labels, num_classes)
    if not all(bool(torch.isfinite(part.sum())) for part in (features, outlier_features)):
        raise InputError("the probe cannot be fitted: some features are not finite")
    mean, deviation = _standard(features)
    training = Rows(
        _standardised(features, mean, deviation, device),
        labels.to(device),
        (0.5 / num_classes / counts.double())[labels].float().to(device),
    )
    outliers = _standardised(outlier_features, mean, deviation, device)
    # The objective is divided by C sum_i w_i, so its size does not depend on the number of images.
    shrinkage = 1 / (INVERSE_REGULARISATION * (len(features) + len(outliers)))
    parameters = torch.zeros(num_classes + 1, len(mean) + 1, dtype=torch.float64, device=device)
    penalty = torch.full_like(parameters, shrinkage)
    penalty[:, -1] = 0  # of the biases
    # A first fit on few outliers saves most evaluations on all of them.
    stride = len(outliers) // len(features)
    evaluations = 0
    with exact_products(device), tqdm(desc="probe", unit=" steps", leave=False, disable=None) as progress:
        for every, tolerance in [(stride, COARSE)] * (stride > 1) + [(1, TOLERANCE)]:
            few = outliers[::every]
            weights = few.new_full((len(few),), 0.5 / len(few))
            labels = torch.full_like(weights, num_classes, dtype=torch.int64)
            rows = Rows(*(torch.cat(parts) for parts in zip(training, (few, labels, weights), strict=True)))
            scale, basis = _curvature(rows, num_classes, shrinkage)

            def gradient(point, rows=rows, scale=scale, basis=basis):
                nonlocal evaluations
                evaluations += 1
                progress.update()
                parameters = (point / scale) @ basis.T
                return ((rows.gradient(parameters) + penalty * parameters) @ basis) / scale

            point, length = _minimise(gradient, (parameters @ basis) * scale, tolerance)
            parameters = (point / scale) @ basis.T
    weight = parameters[:, :-1] / deviation.to(device)
    probe = Classifier(weight, parameters[:, -1] - weight @ mean.to(device))
    if length > TOLERANCE:
        warnings.warn(f"the probe did not converge: the gradient is {length:.1e}", stacklevel=2)
    return probe, {"iterations": evaluations, "gradient": length, "converged": length <= TOLERANCE}


def _standard(features):
    chunks = features.split(CHUNK)
    mean = sum(rows.double().sum(dim=0) for rows in chunks) / len(features)
    variance = sum((rows.double() - mean).square().sum(dim=0) for rows in chunks) / len(features)
    usual = variance.mean()
    # Divided by its own deviation, a unit barely active in training would decide alone where it is active.
    variance = torch.where(variance > CONSTANT * usual, variance, usual)
    return mean, torch.where(variance > 0, variance, 1).sqrt()


def _standardised(features, mean, deviation, device):
    """Returns standardised features and a column of ones, float32 (N, D + 1)."""
    x = torch.ones(len(features), len(mean) + 1, dtype=torch.float32, device=device)
    for rows, target in zip(features.split(CHUNK), x.split(CHUNK), strict=True):
        target[:, :-1] = (rows.double() - mean) / deviation
    return x


def _curvature(rows, num_classes, shrinkage):
    """Returns (scale, basis): of v, with parameters (v / scale) basis^T, the loss has curvature about 1."""
    # Class c's curvature is about its weight w_c (1 - w_c), times a constant, times the features' covariance.
    few = slice(None, None, max(1, len(rows.x) // COVARIANCE_ROWS))
    x, weights = rows.x[few].double(), rows.weights[few].double()
    variances, basis = torch.linalg.eigh((x * (weights / weights.sum())[:, None]).T @ x)
    shares = variances.new_full((num_classes + 1,), 0.5 / num_classes)
    shares[-1] = 0.5
    curvature = CURVATURE * shares * (1 - shares)
    return (curvature[:, None] * variances.clamp(min=0) + shrinkage).sqrt(), basis


def _minimise(gradient: Callable[[Tensor], Tensor], point: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Returns a convex function's minimum and its gradient's length: L-BFGS (Nocedal and Wright, 7.2)."""
    # From gradients alone: rounding hides the last differences of the function's values.
    here = gradient(point)
    steps = changes = here.new_empty(0, here.numel())
    for _ in range(MAX_STEPS):
        if float(here.norm()) <= tolerance:
            break
        direction = -_inverse_hessian(steps, changes, here.flatten()).view_as(here)
        slope, length = float((here * direction).sum()), 1.0
        for _ in range(TRIALS):
            step = length * direction
            there = gradient(point + step)
            new_slope = float((there * direction).sum())
            if new_slope <= -0.5 * slope:
                break
            length *= max(0.1, slope / (slope - new_slope))  # where the slope would be 0 if it were linear
        change = there - here
        if bool((step * change).sum() > 0):  # but for rounding
            steps = torch.cat([steps[-HISTORY + 1 :], step.view(1, -1)])
            changes = torch.cat([changes[-HISTORY + 1 :], change.view(1, -1)])
        point, here = point + step, there
    return point, float(here.norm())


def _inverse_hessian(steps, changes, gradient):
    """Returns L-BFGS's inverse Hessian (Byrd, Nocedal and Schnabel 1994, equation 3.1) times the gradient."""
    if len(steps) == 0:
        return gradient
    products = steps @ changes.T
    gamma = products[-1, -1] / changes[-1].square().sum()
    upper = products.triu()
    along = torch.linalg.solve_triangular(upper, (steps @ gradient)[:, None], upper=True)
    inner = (torch.diag(products.diag()) + gamma * changes @ changes.T) @ along
    inner -= gamma * (changes @ gradient)[:, None]
    inner = torch.linalg.solve_triangular(upper.T, inner, upper=False)
    return gamma * gradient + (inner.T @ steps - gamma * along.T @ changes)[0]
