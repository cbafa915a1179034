"""The cost of ISAC, forward and backward, including statistics: python -m benchmarks.speed.criterion

Compares it with a transcription of its equations, log I by its power series.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.common import milliseconds, publish, timed
from utils.errors import exit_cleanly
from utils.losses import PATTLoss

SIZES = ((128, 10, 512), (128, 100, 512), (32, 1000, 1024))  # N, C, D
TERMS = 300  # of the power series; enough for order 511 and arguments up to 700


def log_iv(order: int, x: Tensor) -> Tensor:
    """Returns log I_order(x), float64, by the power series, whose terms need one more dimension."""
    k = torch.arange(TERMS, dtype=torch.float64, device=x.device)
    terms = (2 * k + order) * torch.log(x[..., None] / 2) - torch.lgamma(k + 1) - torch.lgamma(k + order + 1)
    return torch.logsumexp(terms, dim=-1)


def plain_isac(embeddings: Tensor, labels: Tensor, mean: Tensor, counts: Tensor, tau: float = 0.1) -> Tensor:
    """Returns ISAC's loss as its equations say it; ``mean`` (C, D) is of the classes' unit embeddings."""
    unit, dim = F.normalize(embeddings.double(), dim=1), embeddings.shape[1]
    resultant, order = mean.norm(dim=1), dim // 2 - 1
    kappa = dim * resultant / (1 - resultant**2)
    k = (kappa[:, None] * mean / resultant[:, None] + unit[:, None, :] / tau).norm(dim=2)

    def minus_log_normalizer(concentration):
        return log_iv(order, concentration) - order * torch.log(concentration)

    scores = minus_log_normalizer(k) - minus_log_normalizer(kappa)
    return F.cross_entropy(scores + torch.log(counts / counts.sum()), labels)


def ours_and_plain(n: int, classes: int, dim: int, device: torch.device) -> tuple:
    """Returns two functions that do a forward and backward pass and return loss and gradient: our
    contrastive term with its statistics, and the plain one. Both know 16 earlier embeddings of each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    embeddings = centres[labels] + 2 * torch.randn(n, dim, generator=generator)
    earlier = centres.repeat(16, 1) + 2 * torch.randn(16 * classes, dim, generator=generator)
    earlier = F.normalize(earlier, dim=1).to(device)
    of_class = torch.arange(classes, device=device).repeat(16)
    embeddings, labels = embeddings.to(device).requires_grad_(), labels.to(device)
    counts = torch.logspace(3, 1, classes, device=device).long()
    sizes = {"oe_weight": 0, "tla_weight": 0, "schedule": "running", "tla": False, "oe": False}
    loss = PATTLoss(counts.tolist(), dim, **sizes).to(device)
    loss.statistics.update(earlier, of_class)

    def plain():
        every = torch.cat([earlier, F.normalize(embeddings.detach(), dim=1)]).double()
        one_hot = F.one_hot(torch.cat([of_class, labels]), classes).double()
        return plain_isac(embeddings, labels, one_hot.T @ every / one_hot.sum(0)[:, None], counts.double())

    def step(function):
        embeddings.grad = None
        value = function()
        value.backward()
        return value.detach(), embeddings.grad

    return lambda: step(lambda: loss.contrast(embeddings, labels)), lambda: step(plain)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default="cpu")
    args = parser.parse_args(argv)
    rows, seconds = [], {}
    for size in SIZES:
        name = "N {}, C {}, D {}".format(*size)
        ours, plain = ours_and_plain(*size, args.device)
        (a, grad_a), (b, grad_b) = ours(), plain()
        difference = max(abs(float(a - b)), float((grad_a - grad_b).abs().max() / grad_b.abs().max()))
        fast, slow = seconds[name] = timed(ours, args.repeats), timed(plain, args.repeats)
        ratio = f"{slow[0] / fast[0]:.0f}x"
        rows.append([name, milliseconds(slow), milliseconds(fast), ratio, f"{difference:.0e}"])
    head = ["ISAC, forward + backward", "plain, ms", "ours, ms", "faster", "largest difference"]
    publish(__spec__.name, "criterion", args.device, head, rows, seconds=seconds)


if __name__ == "__main__":
    exit_cleanly(main)
