"""Residual networks for photographs: torchvision's ResNet18/34/50 with a linear classifier and an embedding
head.

The classifier and the calibration read the pooled features; the contrastive loss reads the head's embedding.
"""

from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.output import Output


class PhotographResNet(ResNet):
    """torchvision's ResNet from random weights, with D-wide features (512 or 2048) and a 1024-wide embedding.

    Args:
        num_classes: C.
        block: torchvision's BasicBlock or Bottleneck.
        layers: the number of blocks of each stage.
    """

    embedding_dim = 1024
    embeds = True  # False leaves the head out, where no contrastive loss reads it

    def __init__(self, num_classes, block, layers):
        super().__init__(block, layers)
        width = self.fc.in_features
        self.fc = nn.Identity()  # torchvision's forward then ends at the features
        self.linear = nn.Linear(width, num_classes)
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, self.embedding_dim),
        )

    def forward_features(self, images):
        """(N, 3, H, W) -> (N, D), average-pooled."""
        return super().forward(images)

    def forward(self, images):
        features = self.forward_features(images)
        embedding = self.head(features) if self.embeds else features
        return Output(self.linear(features), features, embedding)


IMAGENET_NETWORKS = {
    "ResNet18": partial(PhotographResNet, block=BasicBlock, layers=(2, 2, 2, 2)),
    "ResNet34": partial(PhotographResNet, block=BasicBlock, layers=(3, 4, 6, 3)),
    "ResNet50": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 6, 3)),
}
