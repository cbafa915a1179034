"""Image to logits, features and embedding: the networks of resnet.py, by family and name."""

from torch import nn

from models.resnet import CIFAR_NETWORKS, IMAGENET_NETWORKS

FAMILIES = {"cifar": CIFAR_NETWORKS, "imagenet": IMAGENET_NETWORKS}


def build_model(name: str, num_classes: int, family: str = "cifar", head: bool = False) -> nn.Module:
    """Builds a network of ``FAMILIES[family]`` with random weights and ``num_classes`` logits, whose
    ``forward(images)`` returns :class:`models.resnet.Output`.

    Families differ in their first layers: ResNet18 for small images ("cifar") is not ResNet18 for photographs
    ("imagenet"). With ``head`` the embedding comes from a projection head, which training alone uses.
    """
    return FAMILIES[family][name](num_classes, head)
