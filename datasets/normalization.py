"""The mean and standard deviation that images are normalised with."""

from functools import lru_cache
from typing import NamedTuple

import torch


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalises images, float (N, 3, H, W), into ``out``, by default in place."""
        mean, std = _channel_constants(self, images.device)
        return torch.sub(images, mean, out=images if out is None else out).div_(std)


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
