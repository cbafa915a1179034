"""What every network returns."""

from typing import NamedTuple

import torch


class Output(NamedTuple):
    """``logits`` (N, C); ``features`` (N, D), what the classifier and the calibration read; ``embedding`` (N,
    p), what the contrastive loss reads, not normalised."""

    logits: torch.Tensor
    features: torch.Tensor
    embedding: torch.Tensor
