"""The probe: a linear head fitted after training on frozen features, with the surrogate outliers as one more
class: classifier re-training (cRT, Kang et al., ICLR 2020) by multinomial logistic regression."""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from utils.calibration import Classifier, class_sizes
from utils.errors import InputError, say

INVERSE_REGULARISATION = 0.1  # C
TOLERANCE = 1e-5  # of the gradient; scikit-learn's default ends well before the optimum
MAX_STEPS = 2000
CONSTANT = 1e-6  # a feature hardly varies if its variance is below this share of the mean variance


def fit_probe(
    features: Tensor, labels: Tensor, outlier_features: Tensor, num_classes: int
) -> tuple[Classifier, dict[str, Any]]:
    """Fits scikit-learn's ``LogisticRegression(C=0.1)``; warns if it did not converge.

    Features are standardised by mean and deviation over the training images. All C classes have the same
    total weight, and the outliers half of the total; the mean weight is 1.

    Takes features (N, D) and labels int64 (N,) of training images, and outlier features (M, D), on the CPU.
    Returns the probe, of C + 1 classes, the outliers last, on unstandardised features, and facts: how many
    ``iterations`` L-BFGS took, and whether it ``converged``. Raises InputError for a class without an image,
    or features that are not finite.
    """
    say(f"fitting the probe on {len(labels):,} images and {len(outlier_features):,} outliers", sys.stderr)
    counts = torch.cat([class_sizes(labels, num_classes), torch.tensor([len(outlier_features)])])
    x = torch.cat([features, outlier_features]).double().numpy()
    y = torch.cat([labels, labels.new_full((len(outlier_features),), num_classes)]).numpy()
    if not np.isfinite(x).all():
        raise InputError("the probe cannot be fitted: some features are not finite")
    mean, deviation = _standard(x[: len(features)])
    shares = np.append(np.full(num_classes, 0.5 / num_classes), 0.5)  # of the total weight
    weights = (len(y) * shares / counts.numpy())[y]
    model = LogisticRegression(C=INVERSE_REGULARISATION, tol=TOLERANCE, max_iter=MAX_STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(((x - mean) / deviation).astype(np.float32), y, sample_weight=weights)
    iterations = int(model.n_iter_[0])
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    if not converged:
        warnings.warn(f"the probe did not converge in {iterations} iterations", stacklevel=2)
    weight = model.coef_.astype(np.float64) / deviation
    probe = Classifier(torch.from_numpy(weight), torch.from_numpy(model.intercept_ - weight @ mean))
    return probe, {"iterations": iterations, "converged": converged}


def _standard(x):
    mean, variance = x.mean(axis=0), x.var(axis=0)
    usual = variance.mean()
    # Divided by its own deviation, a unit barely active in training would decide alone where it is active.
    variance = np.where(variance > CONSTANT * usual, variance, usual)
    return mean, np.sqrt(np.where(variance > 0, variance, 1))
