"""ISAC transcribed from its equations to the letter, the baseline of benchmarks.speed.criterion.

An N x C x D broadcast for the concentrations, and log I by Miller's downward recurrence over orders from
2 nu, a Python loop in float64. It is only for measuring and checking.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def miller_log_iv(order: int, x: Tensor) -> Tensor:
    """Returns log I_order(x) for an integer order: downward recurrence from 2 order, normalised by I_0."""
    above, here = torch.zeros_like(x), torch.ones_like(x)
    log_scale, found = torch.zeros_like(x), None
    for v in range(2 * order, 0, -1):
        if v == order:
            found = log_scale.clone()
        above, here = here, above + 2 * v / x * here
        log_scale = log_scale + torch.log(here)
        above, here = above / here, torch.ones_like(x)
    return found - log_scale + torch.log(torch.special.i0e(x)) + x


class MillerLogIv(torch.autograd.Function):
    """:func:`miller_log_iv` with the derivative I_{order+1} / I_order + order / x, from a second
    recurrence."""

    @staticmethod
    def forward(ctx, order, x):
        value = miller_log_iv(order, x)
        ctx.save_for_backward(torch.exp(miller_log_iv(order + 1, x) - value) + order / x)
        return value

    @staticmethod
    def backward(ctx, grad):
        return None, grad * ctx.saved_tensors[0]


class PlainISAC(nn.Module):
    """ISAC with one running average per class, like :class:`utils.losses.PATTLoss` under "running"."""

    def __init__(self, class_counts: Sequence[int], dim: int, temperature: float = 0.1) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        self.register_buffer("log_prior", torch.log(counts / counts.sum()))
        self.register_buffer("mean", torch.zeros(len(counts), dim, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(len(counts), dtype=torch.float64))
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        embeddings = F.normalize(embeddings.double(), dim=1)
        self.update(embeddings.detach(), labels)
        resultant = self.mean.norm(dim=1)
        dim = embeddings.shape[1]
        kappa = (dim * resultant / (1 - resultant**2)).clamp(1e-3, 1e5)
        direction = self.mean / resultant[:, None]
        shifted = kappa[:, None] * direction + embeddings[:, None, :] / self.temperature  # N x C x D
        k = shifted.norm(dim=2)
        order = dim // 2 - 1

        def minus_log_normalizer(concentration):
            return MillerLogIv.apply(order, concentration) - order * torch.log(concentration)

        scores = minus_log_normalizer(k) - minus_log_normalizer(kappa)
        return F.cross_entropy(scores + self.log_prior, labels)

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        one_hot = F.one_hot(labels, len(self.mean)).double()
        of_class = embeddings[:, None, :] * one_hot[:, :, None]  # N x C x D
        count = one_hot.sum(dim=0)
        share = (count / (self.seen + count).clamp(min=1))[:, None]
        self.mean = self.mean * (1 - share) + of_class.sum(dim=0) / count.clamp(min=1)[:, None] * share
        self.seen += count
