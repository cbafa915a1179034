"""Bytes to batches: which samples, how they are read, augmented and delivered."""

from typing import NamedTuple

import torch


class ImageSet(NamedTuple):
    """Images of one size with their labels; ``images`` is uint8 (N, 3, H, W), ``labels`` int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
