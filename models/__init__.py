"""Image to logits, features and embedding.

output: what every network returns, and the projection head
resnet_cifar: ResNet18, 20, 32 and 34 for images of 32 x 32 and below
resnet_imagenet: torchvision's residual networks, for photographs
"""

from torch import nn

from models.output import Output
from models.resnet_cifar import CIFAR_NETWORKS
from models.resnet_imagenet import IMAGENET_NETWORKS

FAMILIES = {"cifar": CIFAR_NETWORKS, "imagenet": IMAGENET_NETWORKS}

__all__ = ["FAMILIES", "Output", "build_model"]


def build_model(name: str, num_classes: int, family: str = "cifar", head: bool = False) -> nn.Module:
    """Builds a network of ``FAMILIES[family]`` with random weights and ``num_classes`` logits, whose
    ``forward(images)`` returns :class:`Output`.

    Families differ in their first layers: ResNet18 for small images ("cifar") is not ResNet18 for photographs
    ("imagenet"). With ``head`` the embedding comes from a projection head, which training alone uses.
    """
    return FAMILIES[family][name](num_classes, head)
