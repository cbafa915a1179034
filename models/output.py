"""What every network returns."""

from typing import NamedTuple

import torch


class Output(NamedTuple):
    """``logits`` (N, C); ``features`` (N, D), the input of the classifier and the calibration; ``embedding``
    (N, p), the input of the contrastive loss, not normalised."""

    logits: torch.Tensor
    features: torch.Tensor
    embedding: torch.Tensor
