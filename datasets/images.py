"""Images in memory: a labelled set, its long tail, what is held out of it, and how images are normalised."""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from utils.errors import InputError

FEW = 5  # held-out images of a class that say little


class ImageSet(NamedTuple):
    """Images of one size and their labels: ``images`` is uint8 (N, 3, H, W), ``labels`` int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def select(self, rows: torch.Tensor | slice) -> "ImageSet":
        """Returns the images of these rows, int64 (n,) or a slice, in that order."""
        return ImageSet(self.images[rows], self.labels[rows])


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


def hold_out(images: Any, fraction: float) -> tuple[Any, Any]:
    """Returns an ImageSet, or ImageFiles, without the last ``fraction`` of each class's images, at least one
    but not its only one; and these, or None. Warns if classes have too few to choose anything on."""
    if not fraction:
        return images, None
    kept, held = [], []
    for c in images.labels.unique():
        rows = (images.labels == c).nonzero().flatten()
        size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        kept.append(rows[: len(rows) - size])
        held.append(rows[len(rows) - size :])
    if few := sum(len(rows) < FEW for rows in held):
        message = f"{few} of {len(held)} classes have fewer than {FEW} held-out images, which say little"
        warnings.warn(message, stacklevel=2)
    kept, held = torch.cat(kept), torch.cat(held)
    return images.select(kept), images.select(held) if len(held) else None


def kept_outliers(number: int, fraction: float, trained_on: int = 0) -> int:
    """Returns how many outliers are left: the last tenth, at least one, is held out if images are. Those that
    a network was ``trained_on``, the first ones, are not held out."""
    kept = number - max(1, number // 10) if fraction else number
    return min(number, max(kept, trained_on))


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises images, float (N, 3, H, W), in place."""
        mean, std = _channel_constants(self, images.device)
        return images.sub_(mean).div_(std)


@lru_cache(maxsize=32)
def _channel_constants(normalization: Normalization, device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(values, device=device).view(1, 3, 1, 1) for values in normalization)


CIFAR_NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZATIONS = {  # by the values of --normalization
    "cifar": CIFAR_NORMALIZATION,
    "imagenet": IMAGENET_NORMALIZATION,
    "none": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "digits": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
