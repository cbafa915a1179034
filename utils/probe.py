"""The probe: a linear head fitted after training on frozen features, with the surrogate outliers as one more
class.

This is classifier re-training (cRT, Kang et al., ICLR 2020) by multinomial logistic regression over C + 1
classes. No test image is used.
"""

import warnings
from typing import NamedTuple

import torch

from utils.calibration import CHUNK, Classifier, class_sizes
from utils.errors import InputError

INVERSE_REGULARISATION = 0.1  # scikit-learn's C
TOLERANCE = 1e-6  # converged: no entry of the gradient of the mean loss is larger
FINEST = 1e-7  # where the fit stops, unless rounding stops it earlier
CONSTANT = 1e-6  # a feature hardly varies if its variance is below this share of the mean variance
MAX_ITERATIONS = 2000
HISTORY, HISTORY_BYTES = 100, 2**30  # of L-BFGS: steps remembered, at most this much memory


class ProbeFit(NamedTuple):
    """``probe``: a float64 :class:`Classifier` of C + 1 classes, the outliers last, on unstandardised
    features. ``gradient``: its largest entry where the fit ended, after ``iterations``."""

    probe: Classifier
    iterations: int
    gradient: float

    @property
    def converged(self) -> bool:
        return self.gradient <= TOLERANCE

    def ended(self) -> str:
        return f"after {self.iterations} iterations, largest gradient {self.gradient:.1e}"


def fit_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    outlier_features: torch.Tensor,
    num_classes: int,
    device: torch.device,
) -> ProbeFit:
    """Minimises scikit-learn's objective for ``LogisticRegression(C=0.1)``, (1/2) ||W||^2 + C sum_i w_i CE_i,
    by L-BFGS. Warns if it did not converge.

    Features are standardised by mean and deviation over the training images. All classes have the same total
    weight, and the outliers have half of the total; the mean weight is 1, as in scikit-learn.

    Args:
        features: (N, D) of training images; labels: int64 (N,), 0 .. C - 1.
        outlier_features: (M, D).
        num_classes: C. device: where to compute.

    Raises:
        InputError: a class without an image, no outlier, or features that are not finite.
    """
    counts = class_sizes(labels, num_classes)
    if len(outlier_features) == 0:
        raise InputError("the probe needs at least one outlier")
    if not all(bool(torch.isfinite(part.sum())) for part in (features, outlier_features)):
        raise InputError("the probe cannot be fitted: some features are not finite")
    mean, deviation = (part.to(device) for part in _standard(features))
    total = len(labels) + len(outlier_features)
    weights = total / (2 * num_classes) / counts.double()
    sets = (
        (features.to(device), labels.to(device), weights[labels].to(device)),
        _outlier_class(outlier_features.to(device), num_classes, total / 2),
    )
    shrinkage = 1 / (INVERSE_REGULARISATION * total)
    # Weights (C + 1, D) and, in the last column, biases of standardised features.
    parameters = torch.zeros(num_classes + 1, len(mean) + 1, dtype=torch.float64, device=device)

    def unstandardised():
        weight = parameters[:, :-1] / deviation
        return Classifier(weight, parameters[:, -1] - weight @ mean)

    def loss_and_gradient():
        """Returns the objective divided by C sum_i w_i, so its size does not depend on the number of
        images."""
        classifier = unstandardised()
        loss = 0.5 * shrinkage * parameters[:, :-1].square().sum()
        weight_gradient, bias_gradient = (torch.zeros_like(part) for part in classifier)
        for every in sets:
            for rows, of_rows, weight in zip(*(part.split(CHUNK) for part in every), strict=True):
                rows = rows.double()
                residual = classifier.logits(rows).log_softmax(dim=1)
                loss -= weight @ residual.gather(1, of_rows[:, None])[:, 0] / total
                residual.exp_()
                residual[torch.arange(len(rows), device=device), of_rows] -= 1
                residual *= weight[:, None] / total
                weight_gradient += residual.T @ rows
                bias_gradient += residual.sum(dim=0)
        weight_gradient = (weight_gradient - bias_gradient[:, None] * mean) / deviation
        weight_gradient += shrinkage * parameters[:, :-1]
        parameters.grad = torch.cat([weight_gradient, bias_gradient[:, None]], dim=1)
        return loss

    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=MAX_ITERATIONS,
        history_size=min(HISTORY, max(10, HISTORY_BYTES // (2 * parameters.nbytes))),
        tolerance_grad=FINEST,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss_and_gradient)
    loss_and_gradient()
    iterations = optimizer.state[parameters]["n_iter"]
    fit = ProbeFit(unstandardised(), iterations, float(parameters.grad.abs().max()))
    if not fit.converged:
        warnings.warn(f"the probe did not converge; it ended {fit.ended()}", stacklevel=2)
    return fit


def _standard(features):
    """Returns mean and deviation (D,) float64 over the rows.

    A feature that hardly varies has the root mean variance instead of its own deviation: divided by that, a
    unit that was barely active in training would decide alone wherever it is active.
    """
    mean = sum(rows.double().sum(dim=0) for rows in features.split(CHUNK)) / len(features)
    variance = sum((rows.double() - mean).square().sum(dim=0) for rows in features.split(CHUNK)) / len(
        features
    )
    usual = variance.mean()
    variance = torch.where(variance > CONSTANT * usual, variance, usual)
    return mean, torch.where(variance > 0, variance, 1).sqrt()


def _outlier_class(features, label, total_weight):
    """Returns outlier features with their labels and weights."""
    shape = {"size": (len(features),), "device": features.device}
    weights = torch.full(**shape, fill_value=total_weight / len(features), dtype=torch.float64)
    return features, torch.full(**shape, fill_value=label), weights
