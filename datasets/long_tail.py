"""Which images of each class a long-tailed training set has, and which are held out of it."""

import warnings
from collections.abc import Sequence

import torch

from utils.errors import InputError

FEW = 5  # held-out images of a class that say little


def long_tail_counts(max_count: int, num_classes: int, ratio: float) -> list[int]:
    """Returns the number of images of each class, largest first: ``int(max_count * ratio ** (c / (C - 1)))``,
    the profile of CIFAR-LT (Cui et al. 2019).

    Raises:
        InputError: ``ratio`` (the flag ``--rho``) is outside (0, 1], or leaves a class without an image.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"rho (--imbalance_ratio) must be above 0 and at most 1, not {ratio}")
    if max_count < 1 or num_classes < 1:
        raise InputError(
            f"a long tail needs at least one class and one image, not {num_classes} and {max_count}"
        )
    counts = [int(max_count * ratio ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]
    if counts[-1] < 1:
        raise InputError(
            f"rho (--imbalance_ratio) {ratio} leaves class {counts.index(0)} without an image: "
            f"the largest class has {max_count}"
        )
    return counts


def long_tail_indices(labels: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Returns the indices, int64 (sum of counts,), of the first ``counts[c]`` images of each class c, in the
    order of the classes.

    ``labels`` is int64 (N,). Within a class the order is that of the file, so the subset is the same on every
    machine.

    Raises:
        InputError: a label has no count, or a class has no image or fewer than its count.
    """
    labels = torch.as_tensor(labels)
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(counts)):
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, outside 0..{len(counts) - 1}"
        )
    present = torch.bincount(labels, minlength=len(counts)).tolist()
    for c, (have, need) in enumerate(zip(present, counts, strict=True)):
        if have == 0:
            raise InputError(f"class {c} has no image")
        if not 1 <= need <= have:
            raise InputError(f"class {c} has {have} images, and the long tail asks for {need}")
    return torch.cat([(labels == c).nonzero().flatten()[:count] for c, count in enumerate(counts)])


def hold_out(labels: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Holds out the last ``fraction`` of each class's images, at least one.

    Warns if some classes have too few held-out images to choose anything on.

    Returns:
        (kept, held out): int64 indices. A class with a single image keeps it.
    """
    kept, held = [], []
    for c in labels.unique():
        rows = (labels == c).nonzero().flatten()
        size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        kept.append(rows[: len(rows) - size])
        held.append(rows[len(rows) - size :])
    few = sum(len(rows) < FEW for rows in held)
    if few:
        warnings.warn(
            f"{few} of {len(held)} classes have fewer than {FEW} held-out images, which say little",
            stacklevel=2,
        )
    return torch.cat(kept), torch.cat(held)
