"""Residual networks for small images: ResNet18/34 with a 3x3 stem, and ResNet20/32 (He et al. 2016, 4.2).

The parameter names (conv1, bn1, layerN.M.conv1, ..., layerN.M.shortcut.0/1, linear) are those of published
checkpoints in this field, so these load. Convolutions keep PyTorch's initialisation, as the authors' do.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.output import Network

EMBEDDING_DIM = 128  # of the head, as in ProCo


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
        self.add_outputs(width, num_classes, EMBEDDING_DIM if head else None)

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
