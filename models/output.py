"""What every network returns, and what follows its features."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """``logits`` (N, C); ``features`` (N, D), the input of the classifier and the calibration; ``embedding``
    (N, p), the input of the contrastive loss, not normalised."""

    logits: Tensor
    features: Tensor
    embedding: Tensor


class Network(nn.Module):
    """A network with ``forward_features(images)``, a linear classifier, and a projection head or none."""

    def add_outputs(self, width: int, num_classes: int, embedding_dim: int | None) -> None:
        """Without ``embedding_dim`` there is no head: the embedding is the feature vector."""
        self.linear = nn.Linear(width, num_classes)
        self.embedding_dim = embedding_dim or width
        self.head = nn.Identity()
        if embedding_dim:
            hidden = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
            self.head = nn.Sequential(*hidden, nn.Linear(width, embedding_dim))

    def forward(self, images: Tensor) -> Output:
        features = self.forward_features(images)
        return Output(self.linear(features), features, self.head(features))
