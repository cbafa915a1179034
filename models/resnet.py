"""Residual networks: for small images (ResNet20/32, He et al. 2016, 4.2, and ResNet18/34 with a 3x3 stem),
and torchvision's for photographs.

The former's parameter names (conv1, bn1, layerN.M.conv1, ..., layerN.M.shortcut.0/1, linear) are those of
published checkpoints in this field, so these load. Convolutions keep PyTorch's initialisation, as the
authors' do.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import Bottleneck, ResNet

SMALL_EMBEDDING_DIM = 128  # of the head, as in ProCo
PHOTOGRAPH_EMBEDDING_DIM = 1024


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


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class SmallImageResNet(Network):
    """A 3x3 stem and stages of so many ``blocks`` with so many ``channels``, the last one's the feature width
    D; each stage after the first halves height and width. ``head``: with a projection head."""

    def __init__(self, num_classes: int, head: bool, blocks: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.num_stages = len(blocks)
        width = channels[0]
        for stage, (count, out) in enumerate(zip(blocks, channels, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            layers = [BasicBlock(width if i == 0 else out, out, stride) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            width = out
        self.add_outputs(width, num_classes, SMALL_EMBEDDING_DIM if head else None)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the average-pooled features (N, D) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean(dim=(2, 3))


CIFAR_NETWORKS = {
    "ResNet18": partial(SmallImageResNet, blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
    "ResNet34": partial(SmallImageResNet, blocks=(3, 4, 6, 3), channels=(64, 128, 256, 512)),
    "ResNet20": partial(SmallImageResNet, blocks=(3, 3, 3), channels=(16, 32, 64)),
    "ResNet32": partial(SmallImageResNet, blocks=(5, 5, 5), channels=(16, 32, 64)),
}


class PhotographResNet(Network, ResNet):
    """torchvision's ResNet of a ``shape``, with random weights and features of width D (512 or 2048)."""

    def __init__(self, num_classes: int, head: bool, **shape: Any) -> None:
        super().__init__(**shape)
        width = self.fc.in_features
        self.fc = nn.Identity()  # torchvision's forward then ends at the features
        self.add_outputs(width, num_classes, PHOTOGRAPH_EMBEDDING_DIM if head else None)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the average-pooled features (N, D) of images (N, 3, H, W)."""
        return ResNet.forward(self, images)


# Torchvision has the same networks by these names in lower case; its weights fit.
IMAGENET_NETWORKS = {
    "ResNet18": partial(PhotographResNet, block=TorchvisionBlock, layers=(2, 2, 2, 2)),
    "ResNet34": partial(PhotographResNet, block=TorchvisionBlock, layers=(3, 4, 6, 3)),
    "ResNet50": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 6, 3)),
    "ResNet101": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 23, 3)),
}
