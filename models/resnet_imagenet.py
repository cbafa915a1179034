"""Networks for photographs: torchvision's residual networks with a linear classifier and, maybe, a head."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.output import Network

EMBEDDING_DIM = 1024


class PhotographResNet(Network, ResNet):
    """torchvision's ResNet of a ``shape``, with random weights and features of width D (512 or 2048)."""

    def __init__(self, num_classes: int, head: bool, **shape: Any) -> None:
        super().__init__(**shape)
        width = self.fc.in_features
        self.fc = nn.Identity()  # torchvision's forward then ends at the features
        self.add_outputs(width, num_classes, EMBEDDING_DIM if head else None)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the average-pooled features (N, D) of images (N, 3, H, W)."""
        return ResNet.forward(self, images)


IMAGENET_NETWORKS = {
    "ResNet18": partial(PhotographResNet, block=BasicBlock, layers=(2, 2, 2, 2)),
    "ResNet34": partial(PhotographResNet, block=BasicBlock, layers=(3, 4, 6, 3)),
    "ResNet50": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 6, 3)),
    "ResNet101": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 23, 3)),
    "ResNeXt50": partial(
        PhotographResNet, block=Bottleneck, layers=(3, 4, 6, 3), groups=32, width_per_group=4
    ),
    "WideResNet50": partial(PhotographResNet, block=Bottleneck, layers=(3, 4, 6, 3), width_per_group=128),
}
# torchvision's names of the same networks, whose weights fit.
TORCHVISION_NAMES = {name: name.lower() for name in IMAGENET_NETWORKS} | {
    "ResNeXt50": "resnext50_32x4d",
    "WideResNet50": "wide_resnet50_2",
}
