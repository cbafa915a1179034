"""What every network returns, and the head of its embedding."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """``logits`` (N, C); ``features`` (N, D), the input of the classifier and the calibration; ``embedding``
    (N, p), the input of the contrastive loss, not normalised."""

    logits: Tensor
    features: Tensor
    embedding: Tensor


def projection_head(width: int, embedding_dim: int) -> nn.Sequential:
    """Builds the head that maps features (N, ``width``) to the embedding (N, ``embedding_dim``)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, embedding_dim)
    )
