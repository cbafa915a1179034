"""Scores: how far out of distribution an image looks, from its features and logits. Higher = more OOD.

To add a score, add a subclass of :class:`Score` here; flags, tables and result files will then contain it.
``u`` is the feature vector on the unit sphere, f / |f|.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.calibration import CHUNK, Calibration, Outputs, class_sizes
from utils.vmf import estimate_vmf, log_normalizer

NEIGHBOURS = 5  # k of knn; tail classes have few images
RIDGE = 0.1  # of mahalanobis, as a share of the mean variance
ROUNDING = 1e-24  # variances of unit vectors up to this are rounding errors
COMBINED = ("energy", "mahalanobis", "probe")  # what the score of that name is the sum of


class Training(NamedTuple):
    """What scores are fitted on: uncalibrated ``features`` (N, D) of training images, never test images or
    OOD sets; ``labels`` int64 (N,); ``statistics`` mu (C, D) and kappa (C,) of the classes' von Mises-Fisher
    distributions, if training kept them for unit features."""

    calibration: Calibration
    features: Tensor
    labels: Tensor
    statistics: tuple[Tensor, Tensor] | None = None

    def unit_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields u (n, D) float64 and labels (n,) of some rows, on the calibration's device."""
        outputs = self.calibration.outputs(self.features)
        for rows, labels in zip(outputs, self.labels.split(CHUNK), strict=True):
            yield F.normalize(rows.features, dim=1), labels.to(rows.features.device)

    def usable_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Returns ``statistics``, if they are of these features: under FC, features are f * A."""
        return self.statistics if self.calibration.attention is None else None

    def class_means(self) -> Tensor:
        """Returns the mean u of every class, float64 (C, D)."""
        sums = torch.zeros_like(self.calibration.classifier.weight)
        for u, labels in self.unit_features():
            sums.index_add_(0, labels, u)
        return sums / class_sizes(self.labels, len(sums)).to(sums.device)[:, None]


class Score(ABC):
    """A fitted score; its fields are tensors. Subclasses are registered under their ``name``."""

    name: ClassVar[str]

    def __init_subclass__(cls):
        SCORES[cls.name] = cls

    @classmethod
    def fit(cls, training: Training) -> "Score | None":
        """Fits the score for one calibration; None if the calibration lacks what it needs."""
        return cls()

    @abstractmethod
    def __call__(self, outputs: Outputs) -> Tensor:
        """Scores N images, (N,) float64, from their outputs under the calibration it was fitted for."""


SCORES: dict[str, type[Score]] = {}


class Energy(Score):
    """-logsumexp(z), the paper's score (Liu et al., NeurIPS 2020)."""

    name = "energy"

    def __call__(self, outputs):
        return -outputs.logits.logsumexp(dim=1)


class MSP(Score):
    """-max softmax(z) (Hendrycks and Gimpel, ICLR 2017)."""

    name = "msp"

    def __call__(self, outputs):
        return -outputs.logits.softmax(dim=1).amax(dim=1)


class MaxLogit(Score):
    """-max z (Hendrycks et al., ICML 2022)."""

    name = "maxlogit"

    def __call__(self, outputs):
        return -outputs.logits.amax(dim=1)


@dataclass(frozen=True, eq=False)
class KNN(Score):
    """1 - cosine to the k-th nearest training feature, k = 5 (Sun et al., ICML 2022); to the farthest if
    there are fewer. ``bank``: u of the training images, float32 (N, D)."""

    name = "knn"
    bank: Tensor

    @classmethod
    def fit(cls, training):
        return cls(torch.cat([u.float() for u, _ in training.unit_features()]))

    def __call__(self, outputs):
        u = F.normalize(outputs.features, dim=1)
        nearest = u.new_empty(len(u), 0)
        for rows in self.bank.split(CHUNK):  # never a matrix of all training images
            cosines = torch.cat([nearest, u @ rows.double().T], dim=1)
            nearest = cosines.topk(min(NEIGHBOURS, cosines.shape[1]), dim=1).values
        return 1 - nearest[:, -1]


@dataclass(frozen=True, eq=False)
class VMF(Score):
    """-max_c [log C_p(kappa_c) + kappa_c mu_c.u]: the negative log-likelihood of the likeliest class's von
    Mises-Fisher distribution; ``mu`` float64 (C, D) and ``kappa`` (C,) from training, or estimated from
    training features, under FC always, from f * A."""

    name = "vmf"
    mu: Tensor
    kappa: Tensor

    @classmethod
    def fit(cls, training):
        kept = training.usable_statistics()
        if kept is None:
            return cls(*estimate_vmf(training.class_means()))
        return cls(*(part.to(training.calibration.classifier.weight.device) for part in kept))

    def __call__(self, outputs):
        cosines = F.normalize(outputs.features, dim=1) @ self.mu.T
        return -(log_normalizer(self.mu.shape[1], self.kappa) + self.kappa * cosines).amax(dim=1)


@dataclass(frozen=True, eq=False)
class Mahalanobis(Score):
    """min_c (u - m_c)^T Sigma_r^-1 (u - m_c), the squared distance to the nearest class mean (Lee et al.,
    NeurIPS 2018; on the unit sphere and with a ridge, HPM, arXiv 2605.17799).

    Sigma = (1/N) sum_i (u_i - m_{y_i})(u_i - m_{y_i})^T is pooled over the classes, Sigma_r = Sigma +
    r (tr Sigma / D) I with r = 0.1, and L L^T = Sigma_r. ``whitening``: L^-1, float64 (D, D). ``means``:
    L^-1 m_c, float64 (C, D). Left out if nothing varies within a class.
    """

    name = "mahalanobis"
    whitening: Tensor
    means: Tensor

    @classmethod
    def fit(cls, training):
        means = training.class_means()
        identity = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
        covariance = torch.zeros_like(identity)
        for u, labels in training.unit_features():
            residual = u - means[labels]
            covariance += residual.T @ residual / len(training.labels)
        variance = covariance.trace() / len(covariance)
        if not bool(variance > ROUNDING):
            return None
        factor = torch.linalg.cholesky(covariance + RIDGE * variance * identity)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        return cls(whitening, means @ whitening.T)

    def __call__(self, outputs):
        white = F.normalize(outputs.features, dim=1) @ self.whitening.T
        products = 2 * white @ self.means.T
        distances = white.square().sum(1, keepdim=True) - products + self.means.square().sum(1)
        return distances.amin(dim=1).clamp(min=0)


class Probe(Score):
    """The log-probability of the probe's outlier class, see :mod:`utils.probe`; left out without a probe."""

    name = "probe"

    @classmethod
    def fit(cls, training):
        return None if training.calibration.probe is None else cls()

    def __call__(self, outputs):
        return outputs.probe_logits.log_softmax(dim=1)[:, -1]


def score_names() -> tuple[str, ...]:
    return (*SCORES, "combined")


class FittedScores(NamedTuple):
    """The scores of one calibration by name. ``standards``: the (mean, deviation) over the training images of
    each member of ``combined``, if it is there."""

    scores: dict[str, Score]
    standards: dict[str, tuple[float, float]]

    def __call__(self, outputs: Outputs) -> dict[str, Tensor]:
        """Returns name -> (N,) float64 for the outputs of N images."""
        values = {name: score(outputs) for name, score in self.scores.items()}
        if self.standards:
            standards = self.standards.items()
            values["combined"] = sum((values[name] - mean) / std for name, (mean, std) in standards)
        return values

    def state(self) -> dict:
        scores = {name: dict(vars(score)) for name, score in self.scores.items()}
        return {"scores": scores, "standards": {name: list(pair) for name, pair in self.standards.items()}}


def fit_scores(training: Training, names: Iterable[str] | None = None) -> FittedScores:
    """Fits scores, all by default, on training images alone; raises InputError if a class has none.
    ``combined`` is the sum of :data:`COMBINED`, each standardised by its mean and deviation over the training
    images; there is none if one of them is missing."""
    names = set(score_names() if names is None else names)
    combined = "combined" in names
    if combined:
        names.update(COMBINED)
    fitted = {name: score.fit(training) for name, score in SCORES.items() if name in names}
    scores = FittedScores({name: score for name, score in fitted.items() if score is not None}, {})
    if not combined or not scores.scores.keys() >= set(COMBINED):
        return scores
    outputs = training.calibration.outputs(training.features)
    members = FittedScores({name: scores.scores[name] for name in COMBINED}, {})
    values = torch.cat([torch.stack(list(members(rows).values())) for rows in outputs], dim=1)
    deviations, means = torch.std_mean(values, dim=1, correction=0)
    deviations = deviations.where(deviations > 0, 1)  # a constant score adds a constant
    standards = zip(means.tolist(), deviations.tolist(), strict=True)
    return scores._replace(standards=dict(zip(COMBINED, standards, strict=True)))
