"""Random views of image batches: every sample draws its own parameters, every operation runs on the whole batch.

A view is called as ``view(images, generator)`` with uint8 images (N, 3, H, W) on any device and a CPU generator, and
returns float32 images in [0, 1], not normalised. Parameters are drawn on the host, so one seed means one augmentation
on every device, and which samples an operation applies to is known without asking the device. A view is a chain of
stages; a stage has ``draw``, its random parameters for a batch, and ``apply``, which leaves its input alone.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from datasets import ops

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)  # Cutout paints this colour, which is 0 after normalisation

LARGE_IMAGE = 2**16  # values: from this size on a CPU core's cache holds few images, and calls cost less than memory

Drawn = tuple | Tensor | None  # random parameters: a NamedTuple of host tensors with a row an image, or one such tensor


class Stage(ABC):
    """One step of a view."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Drawn:
        """The random parameters of ``n`` images of a size: host tensors with n rows; None where nothing is random."""
        return None

    @abstractmethod
    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The images of the stage, with the parameters that :meth:`draw` gave."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the images that :meth:`apply` makes of images of the given size."""
        return height, width

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, self.draw(len(images), *images.shape[2:], generator))


def _copy(view: Tensor, out: Tensor) -> None:
    out.copy_(view)


@dataclass(frozen=True)
class View:
    """Stages applied one after another.

    Parameters are drawn for the whole batch. Then the batch goes through one stage after another, or, on a CPU, each large
    image goes through all of them while it is in the cache.
    """

    stages: tuple[Stage, ...]

    def __call__(self, images: Tensor, generator: Generator, out: Tensor | None = None,
                 finish: Callable[[Tensor, Tensor], object] = _copy) -> Tensor:
        """``out``: where to put the result, float32 (N, 3, S, S). ``finish(view, out)`` puts a part of it there, perhaps
        normalised."""
        n, _, height, width = images.shape
        drawn = []
        for stage in self.stages:
            drawn.append(stage.draw(n, height, width, generator))
            height, width = stage.output_size(height, width)
        if out is None:
            out = torch.empty(n, 3, height, width, device=images.device)
        at_once = n if images.is_cuda or 3 * height * width < LARGE_IMAGE else 1
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            part = images[rows]
            for stage, parameters in zip(self.stages, drawn, strict=True):
                part = stage.apply(part, _take(parameters, rows))
            finish(part, out[rows])
        return out


def _take(drawn: Drawn, rows: slice) -> Drawn:
    if isinstance(drawn, tuple):
        return type(drawn)(*(values[rows] for values in drawn))
    return None if drawn is None else drawn[rows]


class Views(NamedTuple):
    """The views of one data set: ``strong`` for the classifier, ``contrastive`` for its pairs, ``outlier`` for OOD."""

    strong: View
    contrastive: View
    outlier: View


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def _chance(n: int, probability: float, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) < probability


Operation = Callable[[Tensor, Tensor], Tensor]


def _apply_by_kind(images: Tensor, kind: Tensor, functions: dict[int, Operation], values: Tensor) -> Tensor:
    """``functions[kind[i]](image i, values[i])`` in place of image i; images of other kinds are left alone.

    ``kind`` and ``values`` are host tensors (N,). Each function runs once, on all its samples.
    """
    kinds = set(kind.tolist())
    if len(kinds) == 1:
        function = functions.get(kinds.pop())
        return images if function is None else function(images, values)
    changed = images.clone()
    for number in sorted(kinds & functions.keys()):
        members = torch.nonzero(kind == number).squeeze(1)
        index = ops.to_device(members, images.device)
        changed.index_copy_(0, index, functions[number](images.index_select(0, index), values[members]))
    return changed


def _apply_in_order(images: Tensor, kinds: Tensor, functions: dict[int, Operation], values: Tensor) -> Tensor:
    """:func:`_apply_by_kind` for each column of ``kinds`` and ``values``, (N, steps)."""
    for kind, value in zip(kinds.unbind(1), values.unbind(1), strict=True):
        images = _apply_by_kind(images, kind, functions, value)
    return images


# --- crops and flips


class CropDraw(NamedTuple):
    top: Tensor
    left: Tensor
    flip: Tensor


@dataclass(frozen=True)
class PaddedCrop(Stage):
    """Pad with zeros, crop the original size anywhere, mirror with probability ``flip``. ``padding`` in pixels."""

    padding: int
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> CropDraw:
        """Offsets (N,) int64 in [0, 2 * padding], and mirrors (N,) bool."""
        top, left = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator)
        return CropDraw(top, left, _chance(n, self.flip, generator))

    def apply(self, images: Tensor, drawn: CropDraw) -> Tensor:
        return ops.padded_crop(images, *drawn, self.padding)


@dataclass(frozen=True)
class HorizontalFlip(Stage):
    """Mirror with the given probability."""

    probability: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Mirrors (N,) bool."""
        return _chance(n, self.probability, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        return _apply_by_kind(images, drawn.long(), {1: lambda subset, _: subset.flip(3)}, drawn)


def draw_crop_boxes(heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float],
                    generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random boxes for images of individual sizes, as torchvision's RandomResizedCrop chooses them.

    Up to ten tries an image of an area (share of the image, uniform over ``scale``) and an aspect ratio (log-uniform
    over ``ratio``); the first that fits is placed uniformly. Where none fits: the largest central box of a permitted
    ratio. ``heights`` and ``widths`` are host int64 (N,); returns (top, left, height, width), int64 (N,) each.
    """
    tries = (len(heights), 10)
    rows, columns = heights.unsqueeze(1), widths.unsqueeze(1)
    area = (rows * columns) * _uniform(tries, *scale, generator)
    aspect = _uniform(tries, math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found, width, height = (v.gather(1, first).squeeze(1) for v in (fits, width, height))

    central_width = torch.minimum(widths, (heights * max(ratio)).round().long())
    central_height = torch.minimum(heights, (widths / min(ratio)).round().long())
    width, height = torch.where(found, width, central_width), torch.where(found, height, central_height)
    spare_rows, spare_columns = heights - height, widths - width
    place = torch.rand((2, len(heights)), dtype=torch.float64, generator=generator)
    top = torch.where(found, (place[0] * (spare_rows + 1)).long(), spare_rows // 2)
    left = torch.where(found, (place[1] * (spare_columns + 1)).long(), spare_columns // 2)
    return top, left, height, width


class ResizedCropDraw(NamedTuple):
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


@dataclass(frozen=True)
class RandomResizedCrop(Stage):
    """A random box (``draw_crop_boxes``) resized to ``size``, mirrored with probability ``flip``; gives float32."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> ResizedCropDraw:
        """Boxes for ``n`` images of one size, int64 (N,) each, and mirrors (N,) bool."""
        heights, widths = torch.full((n,), height), torch.full((n,), width)
        boxes = draw_crop_boxes(heights, widths, self.scale, self.ratio, generator)
        return ResizedCropDraw(*boxes, _chance(n, self.flip, generator))

    def apply(self, images: Tensor, drawn: ResizedCropDraw) -> Tensor:
        return ops.resized_crop(images, *drawn, self.size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size


class CutoutDraw(NamedTuple):
    row: Tensor  # (N,) int64
    column: Tensor


@dataclass(frozen=True)
class Cutout(Stage):
    """Cover one square of side ``length``, centred anywhere on the image, with the colour ``fill``."""

    length: int
    fill: tuple[float, float, float]

    def draw(self, n: int, height: int, width: int, generator: Generator) -> CutoutDraw:
        """The centres."""
        row, column = (torch.randint(0, side, (n,), generator=generator) for side in (height, width))
        return CutoutDraw(row, column)

    def apply(self, images: Tensor, drawn: CutoutDraw) -> Tensor:
        return ops.cutout(images, *drawn, self.length, self.fill)


@dataclass(frozen=True)
class ToFloat(Stage):
    """uint8 to float32 in [0, 1]."""

    def apply(self, images: Tensor, drawn: None) -> Tensor:
        return ops.to_float(images)


@dataclass(frozen=True)
class ToUint8(Stage):
    """float32 in [0, 1] to uint8."""

    def apply(self, images: Tensor, drawn: None) -> Tensor:
        return ops.to_uint8(images)


# --- colour


class JitterDraw(NamedTuple):
    chosen: Tensor  # (N,) bool
    order: Tensor  # (N, 4) int64: a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue
    factors: Tensor  # (N, 4) float64, by operation


@dataclass(frozen=True)
class ColorJitter(Stage):
    """torchvision's ColorJitter on float images, with probability ``probability``, in an order drawn per sample.

    Factors are uniform over [max(0, 1 - x), 1 + x] for brightness, contrast and saturation, over [-x, x] for hue.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def draw(self, n: int, height: int, width: int, generator: Generator) -> JitterDraw:
        """Who is changed, in which order, by how much."""
        chosen = _chance(n, self.probability, generator)
        order = torch.rand((n, 4), generator=generator).argsort(1)
        scales = [_uniform((n,), max(0.0, 1.0 - amount), 1.0 + amount, generator)
                  for amount in (self.brightness, self.contrast, self.saturation)]
        hue = _uniform((n,), -self.hue, self.hue, generator)
        return JitterDraw(chosen, order, torch.stack([*scales, hue], 1))

    def apply(self, images: Tensor, drawn: JitterDraw) -> Tensor:
        chosen, order, factors = drawn
        functions = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        wanted = {k: function for k, (function, amount) in enumerate(zip(functions, amounts, strict=True)) if amount}
        kinds = torch.where(chosen.unsqueeze(1), order, -1)
        return _apply_in_order(images, kinds, wanted, factors.gather(1, order))


@dataclass(frozen=True)
class RandomGrayscale(Stage):
    """Replace the colours by their brightness with the given probability."""

    probability: float = 0.2

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Who turns gray, (N,) bool."""
        return _chance(n, self.probability, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        return _apply_by_kind(images, drawn.long(), {1: lambda subset, _: ops.grayscale(subset)}, drawn)


# --- AutoAugment and RandAugment


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


class OperationsDraw(NamedTuple):
    kind: Tensor  # (N, steps) int64, index into OPERATION_NAMES, -1 for none
    value: Tensor  # (N, steps) float64, the operation's parameter in its own unit


def apply_operations(images: Tensor, drawn: OperationsDraw) -> Tensor:
    """Apply each sample's operations to its uint8 image, step after step."""
    return _apply_in_order(images, drawn.kind, dict(enumerate(OPERATIONS.values())), drawn.value)


# The CIFAR-10 policy of AutoAugment (Cubuk et al., arXiv 1805.09501, table 7), in torchvision's transcription:
# 25 sub-policies of two (operation, probability, magnitude bin out of ten).
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
    """Ten magnitudes per operation (operations, 10) float64, and which operations take a random sign (operations,).

    The bins are float32, as torchvision computes them. Enhancements are given as their offset from factor 1.
    """
    bins, signed = torch.zeros(len(OPERATIONS), 10), torch.zeros(len(OPERATIONS), dtype=torch.bool)
    limits = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150.0 / 331.0 * width, "TranslateY": 150.0 / 331.0 * height,
              "Rotate": 30.0, "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9}
    for name, limit in limits.items():
        bins[OPERATION_NAMES.index(name)] = torch.linspace(0.0, limit, 10)
        signed[OPERATION_NAMES.index(name)] = True
    bins[OPERATION_NAMES.index("Posterize")] = 8 - (torch.arange(10) / (9 / 4)).round()
    bins[OPERATION_NAMES.index("Solarize")] = torch.linspace(255.0, 0.0, 10)
    return bins.double(), signed


ENHANCEMENTS = torch.tensor([name in ("Brightness", "Color", "Contrast", "Sharpness") for name in OPERATION_NAMES])


@dataclass(frozen=True)
class AutoAugment(Stage):
    """AutoAugment's CIFAR-10 policy on uint8 images: a random sub-policy, probabilities and signs for each sample."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> OperationsDraw:
        """Two operations a sample, for images of the given size."""
        kinds = torch.tensor([[OPERATION_NAMES.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY])
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
        return apply_operations(images, drawn)


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
    """The search space known as rand-n2-m10-mstd0.5 (Cubuk et al., arXiv 1909.13719; timm's ranges), on uint8 images.

    ``steps`` times: one of fifteen operations, with probability 1/2, at a magnitude m drawn from N(``magnitude``,
    ``std``) and clipped to [0, 10]. The operation's parameter goes linearly with m from its value at 0 to that at 10:
    rotation 0 to 30 degrees, shear 0 to 0.3, translation 0 to 0.45 of the side, each with a random sign; colour,
    contrast, brightness and sharpness factors 0.1 to 1.9; posterize 0 to 4 bits kept, solarize threshold 0 to 256 and
    solarize-add 0 to 110, cut to whole numbers; autocontrast, equalize and invert have none.
    """

    steps: int = 2
    magnitude: float = 10.0
    std: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> OperationsDraw:
        """``steps`` operations a sample, for images of the given size."""
        low, high = torch.tensor([RANDAUGMENT_RANGES[name] for name in OPERATION_NAMES], dtype=torch.float64).unbind(1)
        side = torch.tensor([{"TranslateX": width, "TranslateY": height}.get(name, 1) for name in OPERATION_NAMES])
        signed = torch.tensor([name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
                               for name in OPERATION_NAMES])
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
        return apply_operations(images, drawn)


# --- presets


def cifar_views(size: int = 32, padding: int = 4, cutout_fill: tuple[float, float, float] = CIFAR_MEAN) -> Views:
    """Views for CIFAR. ``padding`` is that of the strong view's crop: 4 by the paper, 0 in the authors' release."""
    strong = View((PaddedCrop(padding), AutoAugment(), ToFloat(), Cutout(size // 2, cutout_fill)))
    contrastive = View((RandomResizedCrop(size), ColorJitter(), RandomGrayscale()))
    outlier = View((PaddedCrop(4), ToFloat(), ColorJitter(), RandomGrayscale()))
    return Views(strong, contrastive, outlier)


def digits_views(size: int = 16, padding: int = 2) -> Views:
    """Views for handwritten digits: nothing that makes one digit look like another, so no mirrors and mild crops."""
    jitter = ColorJitter(saturation=0.0, hue=0.0)
    strong = View((PaddedCrop(padding, flip=0.0), ToFloat()))
    contrastive = View((RandomResizedCrop(size, scale=(0.5, 1.0), flip=0.0), jitter))
    outlier = View((PaddedCrop(2, flip=0.0), ToFloat(), jitter))
    return Views(strong, contrastive, outlier)


def imagenet_views(randaug_n: int = 2, randaug_m: float = 10.0, mstd: float = 0.5) -> Views:
    """Views for images that were cropped and resized while they were read: colour and RandAugment only."""
    strong = View((HorizontalFlip(), ToFloat(), ColorJitter(hue=0.0, probability=1.0), ToUint8(),
                   RandAugment(randaug_n, randaug_m, mstd), ToFloat()))
    contrastive = View((HorizontalFlip(), ToFloat(), ColorJitter(), RandomGrayscale()))
    return Views(strong, contrastive, contrastive)
