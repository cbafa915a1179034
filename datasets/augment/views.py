"""The views of CIFAR-LT and ImageNet-LT: chains of stages with the paper's settings."""

from datasets.augment import stages
from datasets.augment.policies import AutoAugment, RandAugment
from datasets.augment.stages import RANDOM_GRAYSCALE, ColorJitter, ToFloat, View, Views


def cifar_views(padding: int = 4) -> Views:
    """Returns the views for CIFAR. ``padding`` is that of view 1's crop: 4 in the paper, 0 in the authors'
    release."""
    strong = View((stages.PaddedCrop(padding), AutoAugment(), stages.Cutout(16), ToFloat()))
    contrastive = View((stages.RandomResizedCrop(32), ColorJitter(), RANDOM_GRAYSCALE))
    outlier = View((stages.PaddedCrop(4), ToFloat(), ColorJitter(), RANDOM_GRAYSCALE))
    return Views(strong, contrastive, outlier)


def imagenet_views(randaug_n: int = 2, randaug_m: float = 10.0) -> Views:
    """Returns the views for images that are cropped and resized while they are read: mirroring, colour and
    RandAugment only."""
    jitter = ColorJitter(hue=0.0, probability=1.0)
    flip, policy = stages.HORIZONTAL_FLIP, RandAugment(randaug_n, randaug_m)
    strong = View((flip, ToFloat(), jitter, stages.ToUint8(), policy, ToFloat()))
    contrastive = View((flip, ToFloat(), ColorJitter(), RANDOM_GRAYSCALE))
    return Views(strong, contrastive, contrastive)
