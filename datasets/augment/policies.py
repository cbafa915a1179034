"""AutoAugment's CIFAR-10 policy and RandAugment, on uint8 images.

AutoAugment's geometry is Pillow's, as in the authors' release; RandAugment's is torchvision's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from datasets.augment import ops
from datasets.augment.stages import Stage, apply_in_order


def _without_value(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, _: function(images)


OPERATIONS = {
    "ShearX": ops.shear_x,
    "ShearY": ops.shear_y,
    "TranslateX": ops.translate_x,
    "TranslateY": ops.translate_y,
    "Rotate": ops.rotate,
    "Brightness": ops.adjust_brightness,
    "Color": ops.adjust_saturation,
    "Contrast": ops.adjust_contrast,
    "Sharpness": ops.adjust_sharpness,
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "SolarizeAdd": ops.solarize_add,
    "AutoContrast": _without_value(ops.autocontrast),
    "Equalize": _without_value(ops.equalize),
    "Invert": _without_value(ops.invert),
}
OPERATION_NAMES = tuple(OPERATIONS)
GREY = 128  # what AutoAugment shows beyond the border
AUTOAUGMENT_OPERATIONS = OPERATIONS | {
    "ShearX": partial(ops.shear_x_bicubic, fill=GREY),
    "ShearY": partial(ops.shear_y_bicubic, fill=GREY),
    "TranslateX": partial(ops.translate_x, fill=GREY),
    "TranslateY": partial(ops.translate_y, fill=GREY),
    "Rotate": partial(ops.rotate, fill=GREY),
}


class OperationsDraw(NamedTuple):
    kind: Tensor  # (N, steps) int64, index into OPERATION_NAMES, -1 for none
    value: Tensor  # (N, steps) float64, the operation's parameter in its own unit


# The CIFAR-10 policy of AutoAugment (Cubuk et al., arXiv 1805.09501, table 7), in torchvision's
# transcription: 25 sub-policies of two (operation, probability, magnitude bin out of ten).
CIFAR10_POLICY = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)


def _autoaugment_magnitudes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns ten magnitudes per operation, float64 (operations, 10), and which operations take a random
    sign, bool (operations,).

    They are those of the authors' release: translations in whole pixels, rotations in one direction,
    thresholds of Solarize from 256. Enhancements are given as their offset from factor 1.
    """
    bins, signed = torch.zeros(len(OPERATIONS), 10), torch.zeros(len(OPERATIONS), dtype=torch.bool)
    limits = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150.0 / 331.0 * width,
        "TranslateY": 150.0 / 331.0 * height,
        "Rotate": 30.0,
        "Brightness": 0.9,
        "Color": 0.9,
        "Contrast": 0.9,
        "Sharpness": 0.9,
    }
    for name, limit in limits.items():
        magnitudes = torch.linspace(0.0, limit, 10)
        bins[OPERATION_NAMES.index(name)] = magnitudes.round() if "Translate" in name else magnitudes
        signed[OPERATION_NAMES.index(name)] = name != "Rotate"
    bins[OPERATION_NAMES.index("Posterize")] = 8 - (torch.arange(10) / (9 / 4)).round()
    bins[OPERATION_NAMES.index("Solarize")] = torch.linspace(256.0, 0.0, 10)
    return bins.double(), signed


ENHANCEMENTS = torch.tensor(
    [name in ("Brightness", "Color", "Contrast", "Sharpness") for name in OPERATION_NAMES]
)


@dataclass(frozen=True)
class AutoAugment(Stage):
    """AutoAugment's CIFAR-10 policy on uint8 images: a random sub-policy, probabilities and signs for each
    image."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> OperationsDraw:
        """Draws two operations per image, for images of the given size."""
        kinds = torch.tensor(
            [[OPERATION_NAMES.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY]
        )
        probabilities = torch.tensor([[probability for _, probability, _ in pair] for pair in CIFAR10_POLICY])
        bins = torch.tensor([[magnitude or 0 for _, _, magnitude in pair] for pair in CIFAR10_POLICY])
        magnitudes, signed = _autoaugment_magnitudes(height, width)

        policy = torch.randint(len(CIFAR10_POLICY), (n,), generator=generator)
        applied = torch.rand((n, 2), generator=generator) < probabilities[policy]
        negative = torch.randint(2, (n, 2), generator=generator).bool()
        kind = kinds[policy]
        value = magnitudes[kind, bins[policy]]
        value = torch.where(negative & signed[kind], -value, value) + ENHANCEMENTS[kind].double()
        return OperationsDraw(torch.where(applied, kind, -1), value)

    def apply(self, images: Tensor, drawn: OperationsDraw) -> Tensor:
        functions = dict(enumerate(AUTOAUGMENT_OPERATIONS.values()))
        return apply_in_order(images, drawn.kind, functions, drawn.value)


RANDAUGMENT_RANGES = {
    "AutoContrast": (0.0, 0.0),
    "Equalize": (0.0, 0.0),
    "Invert": (0.0, 0.0),
    "Rotate": (0.0, 30.0),
    "Posterize": (0.0, 4.0),
    "Solarize": (0.0, 256.0),
    "SolarizeAdd": (0.0, 110.0),
    "Color": (0.1, 1.9),
    "Contrast": (0.1, 1.9),
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
    "ShearX": (0.0, 0.3),
    "ShearY": (0.0, 0.3),
    "TranslateX": (0.0, 0.45),
    "TranslateY": (0.0, 0.45),
}


@dataclass(frozen=True)
class RandAugment(Stage):
    """The search space known as rand-n2-m10-mstd0.5 (Cubuk et al., arXiv 1909.13719; timm's ranges), on uint8
    images.

    ``steps`` times: one of fifteen operations, with probability 1/2, at a magnitude m drawn from
    N(``magnitude``, ``std``) and clipped to [0, 10]. The operation's parameter is linear in m, between its
    values at 0 and 10: rotation 0 to 30 degrees, shear 0 to 0.3, translation 0 to 0.45 of the side, each with
    a random sign; colour, contrast, brightness and sharpness factors 0.1 to 1.9; posterize 0 to 4 bits kept,
    solarize threshold 0 to 256 and solarize-add 0 to 110, rounded down; autocontrast, equalize and invert
    have none.
    """

    steps: int = 2
    magnitude: float = 10.0
    std: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> OperationsDraw:
        """Draws ``steps`` operations per image, for images of the given size."""
        low, high = torch.tensor(
            [RANDAUGMENT_RANGES[name] for name in OPERATION_NAMES], dtype=torch.float64
        ).unbind(1)
        side = torch.tensor(
            [{"TranslateX": width, "TranslateY": height}.get(name, 1) for name in OPERATION_NAMES]
        )
        signed = torch.tensor(
            [name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY") for name in OPERATION_NAMES]
        )
        whole = torch.tensor([name in ("Posterize", "Solarize", "SolarizeAdd") for name in OPERATION_NAMES])

        shape = (n, self.steps)
        kind = torch.randint(len(OPERATION_NAMES), shape, generator=generator)
        applied = torch.rand(shape, generator=generator) < 0.5
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        level = (self.magnitude + self.std * noise).clamp_(0.0, 10.0) / 10.0
        negative = torch.randint(2, shape, generator=generator).bool()
        value = (low[kind] + level * (high - low)[kind]) * side[kind]
        value = torch.where(whole[kind], value.floor(), value)
        value = torch.where(negative & signed[kind], -value, value)
        return OperationsDraw(torch.where(applied, kind, -1), value)

    def apply(self, images: Tensor, drawn: OperationsDraw) -> Tensor:
        return apply_in_order(images, drawn.kind, dict(enumerate(OPERATIONS.values())), drawn.value)
