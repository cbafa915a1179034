"""Directional statistics: modified Bessel functions of large order, and one von Mises-Fisher distribution per
class; in float64 except the products of embeddings and mean directions."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial.polynomial import Polynomial, polyadd, polyder, polyint, polymul
from torch import Tensor, nn

from utils.distributed import in_process_group, sum_over_processes

DEBYE_TERMS = 8  # of Debye's expansion; with them and orders >= 15 the error of log I stays near 1e-11
SMALLEST_ORDER = 15.0
KAPPA_MIN, KAPPA_MAX = 1e-3, 1e5
UNSEEN_RESULTANT = 0.9  # the mean resultant length R of a class not yet seen


@lru_cache(maxsize=64)
def _debye_table(order):
    """The coefficients of S(p) = sum_k U_k(p) / order^k and D(p) = p S'(p) + S(p) / 2, float64 (J, 2, 2, 2):
    entry [j, i, h, l] belongs to the power 4 j + 2 h + l of S (i = 0) or D (i = 1)."""
    u, total = [Fraction(1)], Polynomial([1.0])
    for k in range(1, DEBYE_TERMS + 1):
        # U_k of DLMF 10.41.9: U' p^2 (1 - p^2) / 2 and 1/8 of the integral of (1 - 5 t^2) U from 0 to p
        changing = polymul([0, 0, Fraction(1, 2), 0, Fraction(-1, 2)], polyder(u))
        u = polyadd(changing, polyint(polymul([Fraction(1, 8), 0, Fraction(-5, 8)], u)))
        term = Polynomial(u.astype(float) / order**k)
        if np.abs(term(np.linspace(0, 1, 200))).max() < 2.0**-53:  # the rounding of the leading 1
            break
        total = total + term
    of_sum = np.pad(total.coef, (0, -len(total.coef) % 4))
    of_slope = (np.arange(len(of_sum)) + 0.5) * of_sum
    return torch.from_numpy(np.stack([of_sum, of_slope])).view(2, -1, 2, 2).transpose(0, 1).contiguous()


def _debye(order, a, table):
    """(f(x) + log(2 pi order) / 2, order / x f'(x)) of f(x) = log I_order(x) - order log(x / order), by
    Debye's expansion (DLMF 10.41.3), from a = 1 + (x / order)^2, float64; order >= 15."""
    # S and D at once, four powers of p a step: on a GPU the number of operations is what counts.
    p = a.rsqrt()
    square = p * p
    fourth = square * square
    table = table.view(*table.shape, *[1] * a.dim())
    series = torch.addcmul(table[-2], table[-1], fourth)
    for row in range(len(table) - 3, -1, -1):
        torch.addcmul(table[row], series, fourth, out=series)
    pairs = torch.addcmul(series[:, :, 0], series[:, :, 1], p)
    of_sum, of_slope = torch.addcmul(pairs[:, 0], pairs[:, 1], square).unbind()
    root = a * p
    more = root + 1
    value = of_sum.log().add_(root.sub_(more.log()), alpha=order).add_(p.log_(), alpha=0.5)
    return value, more.reciprocal_().addcdiv_(square.mul_(of_slope), of_sum, value=-1 / order)


def _debye_order(order):
    """The order from which recurrence goes down to ``order``: itself where Debye's expansion is good."""
    return order + max(0, math.ceil(SMALLEST_ORDER - order))


def log_iv_and_ratio(order: float, x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(log I_order(x), I_{order+1}(x) / I_order(x)), float64; I is the modified Bessel function of the first
    kind. The ratio, in (0, 1), is d/dx [log I_order(x) - order log x]. For orders 0.5 .. 1023 and x in [1e-3,
    1e5] the error is below 1e-9, absolute for the logarithm and relative for the ratio. ``table`` is
    ``_debye_table(_debye_order(order))`` on x's device. Source: DLMF 10.41.3 (Debye's uniform expansion in
    the order) and 10.29.1 (recurrence).
    """
    x, top = x.double(), _debye_order(order)
    table = _debye_table(top).to(x.device) if table is None else table
    z = x / top
    log_i, ratio = _debye(top, 1 + z * z, table)
    log_i = log_i + (top * torch.log(z) - 0.5 * math.log(2 * math.pi * top))
    ratio = ratio * z
    for i in range(round(top - order)):
        # I_{v-1} = I_v (2 v / x + I_{v+1} / I_v)
        step = 2 * (top - i) / x + ratio
        log_i = log_i + torch.log(step)
        ratio = step.reciprocal()
    return log_i, ratio


class _LogMGF(torch.autograd.Function):
    """:meth:`ClassVMF.log_mgf` from cosines: the rest is one pass of a Bessel function and its derivative."""

    @staticmethod
    def forward(ctx, cosine, squared_norm, kappa, temperature, order, table):
        # a = 1 + (k / n)^2 for the k of every embedding and class, and of the class alone; n is the order, or
        # the one to start a recurrence from.
        top = _debye_order(order)
        scaled = kappa / top
        alone = scaled.square().add_(1)
        a = alone + squared_norm / (temperature * top) ** 2
        a = torch.addcmul(a, scaled, cosine, value=2 / (temperature * top))
        a = torch.cat([a, alone[None]])
        if top == order:
            values, slopes = _debye(order, a, table)
        else:
            k = (a - 1).clamp_(min=(KAPPA_MIN / top) ** 2).sqrt_().mul_(top)  # rounding where the two cancel
            values, ratio = log_iv_and_ratio(order, k, table)
            values, slopes = values - order * torch.log(k), top * ratio / k
        ctx.temperature, ctx.top = temperature, top
        ctx.save_for_backward(slopes[:-1], scaled)
        return values[:-1] - values[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        # d values / d a = top / 2 slopes; the normaliser of the class alone carries no gradient.
        slopes, scaled = ctx.saved_tensors
        by_value = grad * slopes
        of_norm = None
        if ctx.needs_input_grad[1]:
            of_norm = by_value.sum(dim=1, keepdim=True) / (2 * ctx.temperature**2 * ctx.top)
        return (by_value * scaled).div_(ctx.temperature), of_norm, None, None, None, None


def log_normalizer(dim: int, kappa: Tensor) -> Tensor:
    """log C_p(kappa) of the von Mises-Fisher density on the unit sphere of R^p, p = ``dim``, float64:
    C_p(kappa) = kappa^nu / ((2 pi)^(p/2) I_nu(kappa)), nu = p/2 - 1."""
    order, kappa = dim / 2 - 1, kappa.double()
    return order * torch.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_iv_and_ratio(order, kappa)[0]


def estimate_vmf(means: Tensor) -> tuple[Tensor, Tensor]:
    """Von Mises-Fisher distributions from the mean vectors m (n, p) of points on the unit sphere: directions
    m / |m|, and concentrations kappa = p R / (1 - R^2) (n,) with R = |m|, kept in [1e-3, 1e5] (Banerjee et
    al. 2005, leading term)."""
    dim, resultant = means.shape[1], means.norm(dim=1)
    # R >= 1 happens for embeddings that are not on the sphere: no spread, the largest concentration.
    spread = torch.rsub(resultant.square(), 1 / dim, alpha=1 / dim).clamp_(min=1e-12 / dim)
    kappa = (resultant / spread).clamp_(KAPPA_MIN, KAPPA_MAX)
    return means / resultant.clamp_(min=1e-12)[:, None], kappa


class ClassVMF(nn.Module):
    """A von Mises-Fisher distribution on the unit sphere of R^p for every class, estimated while training.

    :func:`estimate_vmf` of a class's mean embedding; a class not yet seen has a random direction and R = 0.9.
    The statistics in use, mu in ``mean_direction``, float64 (C, p), and ``kappa``, float64 (C,), are buffers:
    they carry no gradient and belong in the checkpoint. In a process group they are those of the global
    batch.

    ``schedule`` "epoch": the previous epoch's average is used while the current one is collected (for a class
    without one, the average collected so far); "running": one average over the whole run.
    """

    def __init__(self, num_classes: int, dim: int, schedule: str = "epoch") -> None:
        super().__init__()
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
        self.register_buffer("table", _debye_table(_debye_order(dim / 2 - 1)), persistent=False)

    @torch.no_grad()
    def _use_collected(self, classes, chosen):
        """Uses the collected averages of the ``chosen`` (n,) among ``classes``, n indices or a slice."""
        # A class without images has 0 / 0 here, and is not chosen.
        found = estimate_vmf(self.sums[classes] / self.counts[classes][:, None])
        masks = chosen[:, None], chosen
        for buffer, new, mask in zip((self.mean_direction, self.kappa), found, masks, strict=True):
            if isinstance(classes, slice):
                torch.where(mask, new, buffer, out=buffer)
            else:
                buffer[classes] = torch.where(mask, new, buffer[classes])

    def start_epoch(self) -> None:
        """Under "epoch", puts the average just collected to use and begins a new one; "running" changes
        nothing."""
        if self.schedule == "epoch":
            collected = self.counts > 0
            self._use_collected(slice(None), collected)
            self.has_previous.logical_or_(collected)
            self.sums.zero_()
            self.counts.zero_()

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Adds a batch: ``embeddings`` (B, p), ``labels`` int64 (B,)."""
        values = embeddings.detach().double()
        ones = values.new_ones(len(labels))
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
        self._use_collected(changed, (self.counts[changed] > 0) > self.has_previous[changed])

    def log_mgf(self, embeddings: Tensor, temperature: float, unit: bool = False) -> Tensor:
        """Log moment generating function of every class's distribution at e / tau, float64 (B, C),
        differentiable in the embeddings.

        s_c(e) = log C_p(kappa_c) - log C_p(|| kappa_c mu_c + e / tau ||), with C_p the normaliser of the vMF
        density (ProCo, Du et al., TPAMI 2024). ``unit``: the embeddings have length 1; the gradient then has
        no part along them, which normalising would remove.
        """
        cosine = embeddings @ self.mean_direction.to(embeddings.dtype).T
        squared_norm = 1.0 if unit else embeddings.double().square().sum(dim=1, keepdim=True)
        return _LogMGF.apply(cosine, squared_norm, self.kappa, temperature, self.dim / 2 - 1, self.table)
