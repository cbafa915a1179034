"""The views of each kind of data set: chains of stages with the paper's settings."""

from datasets.augment.policies import AutoAugment, RandAugment
from datasets.augment.stages import (
    ColorJitter,
    Cutout,
    HorizontalFlip,
    PaddedCrop,
    RandomGrayscale,
    RandomResizedCrop,
    ToFloat,
    ToUint8,
    View,
    Views,
)
from datasets.normalization import CIFAR_NORMALIZATION


def cifar_views(
    size: int = 32, padding: int = 4, cutout_fill: tuple[float, float, float] = CIFAR_NORMALIZATION.mean
) -> Views:
    """Views for CIFAR. ``padding`` is that of the strong view's crop: 4 by the paper, 0 in the authors'
    release."""
    strong = View((PaddedCrop(padding), AutoAugment(), ToFloat(), Cutout(size // 2, cutout_fill)))
    contrastive = View((RandomResizedCrop(size), ColorJitter(), RandomGrayscale()))
    outlier = View((PaddedCrop(4), ToFloat(), ColorJitter(), RandomGrayscale()))
    return Views(strong, contrastive, outlier)


def imagenet_views(randaug_n: int = 2, randaug_m: float = 10.0, mstd: float = 0.5) -> Views:
    """Views for images that were cropped and resized while they were read: colour and RandAugment only."""
    strong = View(
        (
            HorizontalFlip(),
            ToFloat(),
            ColorJitter(hue=0.0, probability=1.0),
            ToUint8(),
            RandAugment(randaug_n, randaug_m, mstd),
            ToFloat(),
        )
    )
    contrastive = View((HorizontalFlip(), ToFloat(), ColorJitter(), RandomGrayscale()))
    return Views(strong, contrastive, contrastive)
