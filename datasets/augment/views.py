"""The views of CIFAR-LT and ImageNet-LT with the paper's settings, and their two policies: AutoAugment's for
CIFAR-10, and RandAugment, both on uint8 images.

AutoAugment's geometry is Pillow's, as in the authors' release; RandAugment's is torchvision's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional

from datasets.augment import ops, stages
from datasets.augment.stages import RANDOM_GRAYSCALE, ColorJitter, Stage, ToFloat, View, Views, apply_in_order

GREY = 128


def _shear_y_bicubic(images: Tensor, level: Tensor) -> Tensor:
    return ops.shear_x_bicubic(images.transpose(2, 3), level, GREY).transpose(2, 3)


# By name: the operation on images and values, and its value at the least and the greatest magnitude; of
# translations in sides of the image. Magnitudes are RandAugment's 0 and 10 (timm's ranges) ...
RANDAUGMENT = {
    "ShearX": (partial(ops.warp, name="ShearX"), 0.0, 0.3),
    "ShearY": (partial(ops.warp, name="ShearY"), 0.0, 0.3),
    "TranslateX": (partial(ops.warp, name="TranslateX"), 0.0, 0.45),
    "TranslateY": (partial(ops.warp, name="TranslateY"), 0.0, 0.45),
    "Rotate": (partial(ops.warp, name="Rotate"), 0.0, 30.0),
    "Brightness": (ops.adjust_brightness, 0.1, 1.9),
    "Color": (ops.adjust_saturation, 0.1, 1.9),
    "Contrast": (ops.adjust_contrast, 0.1, 1.9),
    "Sharpness": (ops.adjust_sharpness, 0.1, 1.9),
    "Posterize": (ops.posterize, 0.0, 4.0),
    "Solarize": (ops.solarize, 0.0, 256.0),
    "SolarizeAdd": (ops.solarize_add, 0.0, 110.0),
    "AutoContrast": (lambda images, _: ops.autocontrast(images), 0.0, 0.0),
    "Equalize": (lambda images, _: functional.equalize(images), 0.0, 0.0),
    "Invert": (lambda images, _: 255 - images, 0.0, 0.0),
}
# ... and the first and the last of AutoAugment's ten bins, for enhancements as the offset from factor 1. As
# in the authors' release, GREY shows beyond the border, and Solarize starts at 256.
AUTOAUGMENT = RANDAUGMENT | {
    "ShearX": (partial(ops.shear_x_bicubic, fill=GREY), 0.0, 0.3),
    "ShearY": (_shear_y_bicubic, 0.0, 0.3),
    "TranslateX": (partial(ops.warp, name="TranslateX", fill=GREY), 0.0, 150.0 / 331.0),
    "TranslateY": (partial(ops.warp, name="TranslateY", fill=GREY), 0.0, 150.0 / 331.0),
    "Rotate": (partial(ops.warp, name="Rotate", fill=GREY), 0.0, 30.0),
    "Brightness": (ops.adjust_brightness, 0.0, 0.9),
    "Color": (ops.adjust_saturation, 0.0, 0.9),
    "Contrast": (ops.adjust_contrast, 0.0, 0.9),
    "Sharpness": (ops.adjust_sharpness, 0.0, 0.9),
    "Posterize": (ops.posterize, 8.0, 4.0),
    "Solarize": (ops.solarize, 256.0, 0.0),
}
NAMES = tuple(RANDAUGMENT)  # of the operations, in the order of their numbers
SHIFTS = ("ShearX", "ShearY", "TranslateX", "TranslateY")
ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
# The CIFAR-10 policy of AutoAugment (Cubuk et al., arXiv 1805.09501, table 7): 25 sub-policies of two
# (operation, probability, magnitude bin out of ten).
CIFAR10_POLICY = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies


def _is_in(names: Iterable[str]) -> Tensor:
    return torch.tensor([name in names for name in NAMES])


def _sides(height: int, width: int) -> Tensor:
    """Returns what the operations' values are multiples of: the side of the image for translations."""
    return torch.tensor([{"TranslateX": width, "TranslateY": height}.get(name, 1) for name in NAMES])


class AutoAugment(Stage):
    """AutoAugment's CIFAR-10 policy: a random sub-policy, probabilities and signs for each image."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
        names, probabilities, bins = zip(*(step for pair in CIFAR10_POLICY for step in pair), strict=True)
        kinds = torch.tensor([NAMES.index(name) for name in names]).view(-1, 2)
        probabilities = torch.tensor(probabilities).view(-1, 2)
        bins = torch.tensor([number or 0 for number in bins]).view(-1, 2)
        magnitudes = torch.stack([torch.linspace(low, high, 10) for _, low, high in AUTOAUGMENT.values()])
        magnitudes *= _sides(height, width)[:, None]
        whole = _is_in(("TranslateX", "TranslateY", "Posterize"))
        magnitudes[whole] = magnitudes[whole].round()

        policy = torch.randint(len(CIFAR10_POLICY), (n,), generator=generator)
        applied = torch.rand((n, 2), generator=generator) < probabilities[policy]
        negative = torch.randint(2, (n, 2), generator=generator).bool()
        kind = kinds[policy]
        value = magnitudes[kind, bins[policy]].double()
        value = torch.where(negative & _is_in(SHIFTS + ENHANCEMENTS)[kind], -value, value)
        return torch.where(applied, kind, -1), value + _is_in(ENHANCEMENTS)[kind].double()

    def apply(self, images: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
        return apply_in_order(images, kinds, values, [function for function, *_ in AUTOAUGMENT.values()])


@dataclass(frozen=True)
class RandAugment(Stage):
    """The search space known as rand-n2-m10-mstd0.5 (Cubuk et al., arXiv 1909.13719): ``steps`` times one of
    fifteen operations, with probability 1/2, at a magnitude m drawn from N(``magnitude``, ``std``) and
    clipped to [0, 10]. The operation's value is linear in m; that of geometry has a random sign, and bits and
    thresholds are rounded down."""

    steps: int = 2
    magnitude: float = 10.0
    std: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
        limits = torch.tensor([limits for _, *limits in RANDAUGMENT.values()], dtype=torch.float64)
        low, high = limits.unbind(1)
        shape = (n, self.steps)
        kind = torch.randint(len(NAMES), shape, generator=generator)
        applied = torch.rand(shape, generator=generator) < 0.5
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        level = (self.magnitude + self.std * noise).clamp_(0.0, 10.0) / 10.0
        negative = torch.randint(2, shape, generator=generator).bool()
        value = (low[kind] + level * (high - low)[kind]) * _sides(height, width)[kind]
        value = torch.where(_is_in(("Posterize", "Solarize", "SolarizeAdd"))[kind], value.floor(), value)
        value = torch.where(negative & _is_in((*SHIFTS, "Rotate"))[kind], -value, value)
        return torch.where(applied, kind, -1), value

    def apply(self, images: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
        return apply_in_order(images, kinds, values, [function for function, *_ in RANDAUGMENT.values()])


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
