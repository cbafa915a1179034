"""Directional statistics: modified Bessel functions of large order, and one von Mises-Fisher distribution per
class.

Every function works on whole tensors in float64. There is no loop over samples or classes, and no N x C x p
tensor; orders below 15 take a recurrence of at most 15 steps.
"""

import math
from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.distributed import in_process_group, sum_over_processes

TERMS = 8  # of Debye's expansion; with them and orders >= 15 the error of log I stays near 1e-11
SMALLEST_ORDER = 15.0
ROUNDING = 2.0**-53
KAPPA_MIN, KAPPA_MAX = 1e-3, 1e5
UNSEEN_RESULTANT = 0.9  # the mean resultant length R of a class that no batch has shown yet


@cache
def _debye_polynomials():
    """U_1 .. U_TERMS of DLMF 10.41.9, each a dict of the power of p to its exact coefficient."""
    polynomials, u = [], {0: Fraction(1)}
    for _ in range(TERMS):
        following = {}

        def add(power, value, into=following):
            into[power] = into.get(power, Fraction(0)) + value

        for power, a in u.items():
            # U' p^2 (1 - p^2) / 2  and  1/8 of the integral of (1 - 5 t^2) U from 0 to p
            add(power + 1, a * power / 2)
            add(power + 3, -a * power / 2)
            add(power + 1, a / (8 * (power + 1)))
            add(power + 3, -5 * a / (8 * (power + 3)))
        u = {power: value for power, value in following.items() if value}
        polynomials.append(u)
    return polynomials


@lru_cache(maxsize=64)
def _debye_coefficients(order):
    """The coefficients of sum_k U_k(p) / order^k as one polynomial in p, lowest power first.

    Terms that nowhere in p's range [0, 1] reach the rounding of the leading 1 are left out: for large orders
    the last few.
    """
    total = [1.0]
    for k, polynomial in enumerate(_debye_polynomials(), start=1):
        term = [float(polynomial.get(power, 0)) / order**k for power in range(3 * k + 1)]
        if np.abs(np.polynomial.Polynomial(term)(np.linspace(0, 1, 200))).max() < ROUNDING:
            break
        total = [a + b for a, b in zip(total + [0.0] * (len(term) - len(total)), term, strict=True)]
    return total


def _log_iv_debye(order, x):
    """log I_order(x) for order >= SMALLEST_ORDER by DLMF 10.41.3."""
    z = x / order
    root = torch.sqrt(1 + z * z)
    p = root.reciprocal()
    coefficients = _debye_coefficients(order)
    series = torch.full_like(p, coefficients[-1])
    for value in reversed(coefficients[:-1]):
        series.mul_(p).add_(value)
    eta = root + torch.log(z / (1 + root))
    return order * eta - 0.5 * torch.log(root) + (torch.log(series) - 0.5 * math.log(2 * math.pi * order))


def _log_iv_and_ratio(order, x):
    """(log I_order(x), I_{order+1}(x) / I_order(x)); orders below SMALLEST_ORDER by downward recurrence, DLMF
    10.29.1."""
    steps = max(0, math.ceil(SMALLEST_ORDER - order))
    top = order + steps
    log_i = _log_iv_debye(top, x)
    ratio = torch.exp(_log_iv_debye(top + 1, x) - log_i)
    for v in (top - i for i in range(steps)):
        # I_{v-1} = I_v (2 v / x + I_{v+1} / I_v)
        step = 2 * v / x + ratio
        log_i = log_i + torch.log(step)
        ratio = step.reciprocal()
    return log_i, ratio


class _LogIv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, order, x):
        ctx.order = order
        value, ratio = _log_iv_and_ratio(order, x)
        ctx.save_for_backward(x, ratio)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, ratio = ctx.saved_tensors
        return None, grad * (ratio + ctx.order / x)


def log_iv(order, x):
    """Logarithm of the modified Bessel function of the first kind, log I_order(x), differentiable in x.

    Args:
        order: a number >= 0.
        x: positive values, any shape; computed in float64.

    Returns:
        float64 tensor of x's shape. Absolute error below 1e-9 for orders 0.5 .. 1023 and x in [1e-3, 1e5].

    Raises:
        ValueError: negative order.

    Source: DLMF 10.41.3 (Debye's uniform expansion in the order) and 10.29.1 (recurrence).
    """
    if order < 0:
        raise ValueError(f"the order must be at least 0, not {order}")
    return _LogIv.apply(float(order), torch.as_tensor(x).double())


def bessel_ratio(order, x):
    """I_{order+1}(x) / I_order(x), in (0, 1); shapes and range as :func:`log_iv`. It is d/dx [log I_order(x)
    - order log x]."""
    return _log_iv_and_ratio(float(order), torch.as_tensor(x).double())[1]


class _MinusLogNormalizer(torch.autograd.Function):
    """log I_order(k) - order log k from k^2: minus log C_p(k) up to a constant; its derivative in k is the
    Bessel ratio."""

    @staticmethod
    def forward(ctx, order, k_squared):
        k = k_squared.sqrt()
        value, ratio = _log_iv_and_ratio(order, k)
        ctx.save_for_backward(ratio.div_(2 * k))
        return value.sub_(order * torch.log(k))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return None, grad * ctx.saved_tensors[0]


def log_normalizer(dim: int, kappa: torch.Tensor) -> torch.Tensor:
    """log C_p(kappa) of the von Mises-Fisher density on the unit sphere of R^p, with its constant.

    C_p(kappa) = kappa^nu / ((2 pi)^(p/2) I_nu(kappa)), nu = p/2 - 1.

    Args:
        dim: p. kappa: positive, any shape.

    Returns:
        float64 tensor of kappa's shape.
    """
    order, kappa = dim / 2 - 1, kappa.double()
    return order * torch.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_iv(order, kappa)


def estimate_vmf(means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Von Mises-Fisher distributions from the mean vectors (n, p) of points on the unit sphere.

    Returns:
        (mu, kappa): directions m / |m| (n, p), and concentrations kappa = p R / (1 - R^2) with R = |m| (n,),
        kept in [1e-3, 1e5] (Banerjee et al. 2005, leading term).
    """
    resultant = means.norm(dim=1)
    # R >= 1 happens for embeddings that are not on the sphere: no spread, the largest concentration.
    kappa = means.shape[1] * resultant / (1 - resultant**2).clamp(min=1e-12)
    return means / resultant.clamp(min=1e-12)[:, None], kappa.clamp(KAPPA_MIN, KAPPA_MAX)


class ClassVMF(nn.Module):
    """A von Mises-Fisher distribution on the unit sphere of R^dim for every class, estimated while training.

    Class c's mean embedding m_c gives mu_c = m_c / |m_c|, R = |m_c| and kappa_c = p R / (1 - R^2) (Banerjee
    et al. 2005, leading term), kept in [1e-3, 1e5]. A class that no batch has shown yet has a random
    direction and R = 0.9. The statistics are
    buffers: they carry no gradient and belong in the checkpoint. In a process group they are those of the
        global batch.

    Args:
        num_classes: C.
        dim: p, the width of the embeddings.
        schedule: "epoch": the previous epoch's average serves while the current one is collected (a class
            without one is served by the average collected so far); "running": one average over the whole run.

    Attributes:
        mean_direction: mu, float64 (C, p), unit rows. kappa: float64 (C,). What serves now.
    """

    SCHEDULES = ("epoch", "running")

    def __init__(self, num_classes, dim, schedule="epoch"):
        super().__init__()
        if schedule not in self.SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(self.SCHEDULES)}")
        self.schedule = schedule
        self.dim = dim
        direction, kappa = estimate_vmf(
            UNSEEN_RESULTANT * F.normalize(torch.randn(num_classes, dim, dtype=torch.float64))
        )
        self.register_buffer("sums", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean_direction", direction)
        self.register_buffer("kappa", kappa)
        self.register_buffer("has_previous", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def _serve(self, classes, chosen):
        """Lets what is collected serve those of ``classes`` (n indices, or a slice) that are ``chosen`` (n,),
        no others."""
        direction, kappa = estimate_vmf(self.sums[classes] / self.counts[classes].clamp(min=1)[:, None])
        self.mean_direction[classes] = torch.where(chosen[:, None], direction, self.mean_direction[classes])
        self.kappa[classes] = torch.where(chosen, kappa, self.kappa[classes])

    def start_epoch(self):
        """Under "epoch", the average just collected begins to serve and a new one is begun; "running" goes
        on."""
        if self.schedule == "epoch":
            collected = self.counts > 0
            self._serve(slice(None), collected)
            self.has_previous.logical_or_(collected)
            self.sums.zero_()
            self.counts.zero_()

    @torch.no_grad()
    def update(self, embeddings, labels):
        """Adds a batch: ``embeddings`` (B, p), ``labels`` int64 (B,)."""
        values, ones = embeddings.detach().double(), torch.ones_like(labels, dtype=torch.float64)
        changed = slice(None)
        if in_process_group():
            sums = torch.zeros_like(self.sums).index_add_(0, labels, values)
            counts = torch.zeros_like(self.counts).index_add_(0, labels, ones)
            self.sums.add_(sum_over_processes(sums))
            self.counts.add_(sum_over_processes(counts))
        else:
            self.sums.index_add_(0, labels, values)
            self.counts.index_add_(0, labels, ones)
            if len(labels) < len(self.counts):  # many classes: nothing of size C x p is made
                changed = labels
        self._serve(changed, (self.counts[changed] > 0) & ~self.has_previous[changed])

    def log_mgf(self, embeddings, temperature):
        """Log moment generating function of every class's distribution at e / tau, differentiable in the
        embeddings.

        s_c(e) = log C_p(kappa_c) - log C_p(|| kappa_c mu_c + e / tau ||), with C_p the normaliser of the vMF
        density (ProCo, Du et al., TPAMI 2024).

        Args:
            embeddings: (B, p). The products with mu are taken in this dtype, what follows in float64.
            temperature: tau > 0.

        Returns:
            float64 (B, C).
        """
        cosine = (embeddings @ self.mean_direction.to(embeddings.dtype).T).double()
        norm = embeddings.double().square().sum(dim=1, keepdim=True)
        # The norm of kappa mu + e / tau without the N x C x p tensor; the clamp is for rounding where the two
        # cancel.
        kappa_squared = self.kappa.square()
        k_squared = torch.addcmul(kappa_squared + norm / temperature**2, 2 / temperature * self.kappa, cosine)
        both = torch.cat([k_squared.clamp(min=KAPPA_MIN**2), kappa_squared[None]])  # one pass over both
        values = _MinusLogNormalizer.apply(self.dim / 2 - 1, both)
        return values[:-1] - values[-1]
