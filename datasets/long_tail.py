"""Which images of each class a long-tailed training set has, and which are held out of it."""

import warnings
from collections.abc import Sequence

import torch

from utils.errors import InputError

FEW = 5  # held-out images of a class that say little


def long_tail_counts(max_count: int, num_classes: int, ratio: float) -> list[int]:
    """Returns the number of images of each class, largest first: ``int(max_count * ratio ** (c / (C - 1)))``,
    the profile of CIFAR-LT (Cui et al. 2019). Raises InputError if that leaves a class without an image."""
    counts = [int(max_count * ratio ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]
    if counts[-1] < 1:
        emptied = f"leaves class {counts.index(0)} without an image: the largest class has {max_count}"
        raise InputError(f"rho (--imbalance_ratio) {ratio} {emptied}")
    return counts


def long_tail_indices(labels: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Returns the indices, int64 (sum of counts,), of the first ``counts[c]`` images of each class c in turn.
    ``labels`` is int64 (N,). Raises InputError if a class has fewer images than its count."""
    rows = [(labels == c).nonzero().flatten() for c in range(len(counts))]
    for c, (of_class, count) in enumerate(zip(rows, counts, strict=True)):
        if len(of_class) < count:
            raise InputError(f"class {c} has {len(of_class)} images, and the long tail asks for {count}")
    return torch.cat([of_class[:count] for of_class, count in zip(rows, counts, strict=True)])


def hold_out(labels: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Holds out the last ``fraction`` of each class's images, at least one, but not its only one.

    Returns int64 indices: (kept, held out). Warns if classes have too few to choose anything on.
    """
    kept, held = [], []
    for c in labels.unique():
        rows = (labels == c).nonzero().flatten()
        size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        kept.append(rows[: len(rows) - size])
        held.append(rows[len(rows) - size :])
    if few := sum(len(rows) < FEW for rows in held):
        message = f"{few} of {len(held)} classes have fewer than {FEW} held-out images, which say little"
        warnings.warn(message, stacklevel=2)
    return torch.cat(kept), torch.cat(held)
